"""Log lines for machines are JSON, one object a line, with what was said beside the message."""

import json
import logging
import logging.config
from collections.abc import Iterator

import pytest

from stream_app.logs import logging_config
from stream_app.settings import Settings


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_every_line_is_an_object(logging_as_before: None, capsys: pytest.CaptureFixture[str]) -> None:
    config = logging_config(Settings(log_format="json", log_level="warning"))
    assert config is not None
    logging.config.dictConfig(config)
    log = logging.getLogger("some.library")
    log.info("not worth a line")
    log.warning("%d records\nrejected", 3, extra={"partition": 2})
    try:
        int("broken")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["partition"], first["level"]) == ("3 records\nrejected", 2, "warning")
    assert first["logger"] == "some.library"
    assert first["timestamp"].endswith("Z")
    assert "ValueError: invalid literal" in second["exception"]


def test_a_console_keeps_fausts_own_lines() -> None:
    assert logging_config(Settings(log_format="console")) is None
