"""The list of banned items: what is read, what is refused, when it is read again."""

import gzip
import os
from pathlib import Path

import pytest

from stream_app.banned_items import BannedItemsError, BannedItemsWatch, read


def test_one_id_per_line(tmp_path: Path) -> None:
    place = tmp_path / "banned.txt"
    place.write_bytes("\ufeffi1\r\n\n  i 2 \n#3\ni1".encode())
    assert read(place) == {"i1", "i 2", "#3"}
    packed = tmp_path / "banned.txt.gz"
    packed.write_bytes(gzip.compress(place.read_bytes()))
    assert read(packed) == read(place)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("list", None, "cannot read .*list: No such file"),
        ("list", b"\xff\xfe", "list is no UTF-8 text: write one item id per line"),
        ("list.gz", b"i1\n", "list.gz cannot be unpacked"),
        ("list.gz", gzip.compress(b"i1\ni2\n", mtime=0)[:-3], "list.gz cannot be unpacked"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path: Path, name: str, data: bytes | None, line: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BannedItemsError, match=line):
        read(tmp_path / name)


async def test_each_change_is_told_and_a_bad_list_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, told = tmp_path / "list", list[frozenset[str]]()
    place.write_text("i1\n")
    watch = BannedItemsWatch(place, told.append)
    await watch.check()
    assert told == []
    place.write_text("i1\ni2\n")
    await watch.check()
    await watch.check()
    assert told == [{"i1", "i2"}]
    place.unlink()
    await watch.check()
    await watch.check()
    assert len(told) == len(caplog.records) == 1
    assert "refused, the one before stays in force: cannot read" in caplog.text
    place.write_text("i3\n")
    os.utime(place, ns=(0, 0))
    await watch.check()
    place.write_text("i4\n")  # as long: its time tells
    await watch.check()
    assert told[1:] == [{"i3"}, {"i4"}]
