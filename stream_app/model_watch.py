"""Another model in the place of the one at work: found, checked, and handed over; or refused, which is said once.

The place is a model directory, which whoever publishes replaces, or a pointer, a text file that holds the path of one. What
takes time runs in a thread that is neither the event loop's nor the device's. Knows nothing of Faust or Kafka, nor of
batches: whoever takes a model over puts it between two of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import sleep
from typing import NamedTuple

from model.artifact import ArtifactError, read_manifest
from model.engine import Engine
from model.window import WindowRule
from stream_app.observations import Swap
from stream_app.serving import model_directory

log = logging.getLogger("nextmove")

RENAME_S = 0.5  # who publishes renames twice, and between the two there is no model: that long it is looked for again
WAITS = 10  # in that time, all of one length: whoever publishes again and again may be met between two renames more than once

Load = Callable[[Path], Engine]  # a model directory, checked and warm
Take = Callable[[Engine], Awaitable[None]]  # returns when the model answers
Tell = Callable[[Swap, Engine], None]  # what became of a model that was found, and which one is at work now


class Published(NamedTuple):
    """What lies in the place of the model, as far as can be told without reading the weights."""

    directory: Path
    version: str
    window: WindowRule
    files: frozenset[tuple[str, int, int, int]]  # name, inode, bytes, time of the last change in ns


class ModelWatch:
    """Looks after the place of a model, on behalf of whoever works with it."""

    def __init__(self, place: Path, at_work: Engine, *, load: Load, take: Take, tell: Tell) -> None:
        self._place = place
        self.at_work = at_work
        self._load = load
        self._take = take
        self._tell = tell
        self._refused: Published | None = None  # not looked at again until a file of it changes
        self._said: tuple[str | None, str] | None = None  # version and reason of the last refusal

    async def run(self, every_s: float) -> None:
        """Look every so many seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.check()

    async def check(self) -> None:
        """Look once: another version that is sound takes over; one that is not leaves everything as it is."""
        found: Published | None = None
        try:
            found = await asyncio.to_thread(find, self._place)
            if found == self._refused:
                return
            if found.version != self.at_work.version:
                await self._replace_by(found)
        except Exception as error:  # noqa: BLE001  # whatever a model raises, the one at work goes on
            if found is None or await asyncio.to_thread(_still_there, self._place, found):
                self._refuse(found, error)
            return
        self._refused = self._said = None

    async def _replace_by(self, found: Published) -> None:
        if found.window != self.at_work.window:
            raise ArtifactError(
                f"{found.directory}: model {found.version} has another window rule, and histories are kept by the old one: "
                "restart the worker"
            )
        engine = await asyncio.to_thread(self._load, found.directory)
        await self._take(engine)
        log.info("model %s has taken over from %s", engine.version, self.at_work.version)
        self.at_work = engine
        self._tell(Swap.SWAPPED, engine)

    def _refuse(self, found: Published | None, error: Exception) -> None:
        """What is only half there may be whole later: each change is looked at, and the same reason said once."""
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, ArtifactError):
            reason = f"{found.directory if found else self._place}: {type(error).__name__}: {reason}"
        self._refused, said = found, (found and found.version, reason)
        if said != self._said:
            self._said = said
            log.warning("model refused, %s stays at work: %s", self.at_work.version, reason)
            self._tell(Swap.REFUSED, self.at_work)


def find(place: Path) -> Published:
    """The model that lies there; it reads the manifest and no other file. Raises ArtifactError if there is none for `RENAME_S`."""
    for _ in range(WAITS):
        try:
            return _look(place)
        except ArtifactError:
            sleep(RENAME_S / WAITS)
    return _look(place)


def _look(place: Path) -> Published:
    try:
        directory = model_directory(place)
        manifest = read_manifest(directory)
        looks = ((path.name, path.stat()) for path in directory.iterdir())
        files = frozenset((name, look.st_ino, look.st_size, look.st_mtime_ns) for name, look in looks)
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename or place}: {error.strerror}") from error
    return Published(directory, manifest.version, manifest.window, files)


def _still_there(place: Path, found: Published) -> bool:
    """Whether nobody has written there since; if somebody has, it is for the next look to judge."""
    try:
        return _look(place) == found
    except Exception:  # noqa: BLE001  # whatever lies there now is another thing
        return False
