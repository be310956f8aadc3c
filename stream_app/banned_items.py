"""Items that are never to be listed: a text file, one id per line, read again when it changes.

Knows nothing of models; whoever is told puts the list in force.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("nextmove")

Look = tuple[int, int, int]  # inode, bytes, time of the last change in ns


class BannedItemsError(ValueError):
    """The list cannot be read. One line."""


class BannedItemsWatch:
    """Looks after the file; what is wrong with a new list is said once, and the one before stays in force."""

    def __init__(self, place: Path, tell: Callable[[frozenset[str]], None]) -> None:
        """`tell` is given each list that differs from what was read before; the first one is whoever starts this has read."""
        self._place = place
        self._tell = tell
        self._seen = _look(place)

    async def run(self, every_s: float) -> None:
        """Look every so many seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.check()

    async def check(self) -> None:
        """Look once."""
        look = await asyncio.to_thread(_look, self._place)
        if look == self._seen:
            return
        self._seen = look  # what changes while it is read is found changed again
        try:
            self._tell(await asyncio.to_thread(read, self._place))
        except BannedItemsError as error:
            log.warning("list of banned items refused, the one before stays in force: %s", error)


def read(place: Path) -> frozenset[str]:
    """The ids in the file; blank lines are none. Raises BannedItemsError."""
    try:
        data = place.read_bytes()
        text = (gzip.decompress(data) if place.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BannedItemsError(f"{place} is no UTF-8 text: write one item id per line") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BannedItemsError(f"{place} cannot be unpacked: {error}") from None
    except OSError as error:
        raise BannedItemsError(f"cannot read {place}: {error.strerror or error}") from None
    return frozenset(filter(None, map(str.strip, text.split("\n"))))


def _look(place: Path) -> Look | None:
    """None: it is not there."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
