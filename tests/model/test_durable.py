import os

import pytest

from model import durable


def test_content_and_names_are_synced(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle)))
    durable.write(tmp_path / "file", b"content")
    durable.sync(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_a_place_that_is_none_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        durable.write(tmp_path / "none" / "file", b"")
    with pytest.raises(OSError, match="No such file"):
        durable.sync(tmp_path / "none")
