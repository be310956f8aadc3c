from transformers.utils import logging

from model.quiet import quiet


def test_it_is_quiet_while_it_lasts_and_as_before_afterwards():
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
