"""The watch beside a worker's model, with real model directories: what takes over, what is refused, and what is said of it."""

import asyncio
import errno
import gc
import logging
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from model import artifact
from model.artifact import Artifact, ArtifactError
from model.calibration import Calibration
from model.engine import Engine
from model.window import Window, WindowRule
from stream_app import behaviors, model_watch
from stream_app.model_watch import ModelWatch, find
from stream_app.observations import Swap
from stream_app.serving import load_engine, load_successor, new_pipeline
from stream_app.settings import Settings
from tests.artefacts import published, untrained
from tests.stream_app.records import event_record
from tests.stream_app.test_pipeline import read, run

THE_WORKERS = model_watch.RENAME_S  # seconds; most tests wait less


class Watched:
    """A pipeline, and the watch over the place of its model."""

    def __init__(self, place: Path) -> None:
        self.settings = Settings(model=place, device="cpu")
        engine = load_engine(self.settings)
        self.pipeline = new_pipeline(engine, self.settings, behaviors.load())
        self.loads = 0
        self.told: list[tuple[Swap, str]] = []
        self.watch = ModelWatch(
            place, engine, load=self.load, take=self.take, tell=lambda swap, at_work: self.note(swap, at_work)
        )
        self._offset = 0

    def load(self, directory: Path) -> Engine:
        assert threading.current_thread() is not threading.main_thread(), "the event loop would stand still"
        self.loads += 1
        return load_successor(directory, self.settings)

    async def take(self, engine: Engine) -> None:
        self.pipeline.swap(engine)

    def note(self, swap: Swap, at_work: Engine) -> None:
        self.told.append((swap, at_work.version))

    def answering(self) -> str:
        """The version that answers an event now."""
        self._offset += 1
        _, outputs = run(self.pipeline, [event_record("u", self._offset, item_id="i1")])
        return read(outputs.predictions[0][1]).model_version


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def old(place: Path) -> str:
    """A model is there; its version."""
    return published(place, untrained(0))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_watch, "RENAME_S", 0.01)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "nextmove"]


# Swapped


@pytest.mark.parametrize(
    "parts",
    [
        untrained(1),
        untrained(1, items=300, categories=9),
        untrained(1, items=3, categories=0),
        untrained(1, goal="add_to_cart"),
        untrained(0, calibration=Calibration(behavior_temperature=2.0)),
        untrained(0, behaviors=("purchase", "view")),
    ],
    ids=["weights", "more names", "fewer names", "goal", "calibration", "behaviours"],
)
async def test_a_sound_model_takes_over(
    place: Path, old: str, parts: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(place)
    caplog.set_level(logging.INFO, "nextmove")
    await watched.watch.check()
    assert (watched.loads, watched.told, watched.answering()) == (0, [], old)
    new = published(place, parts)
    await watched.watch.check()
    assert watched.answering() == new != old
    await watched.watch.check()
    assert (watched.loads, watched.told) == (1, [(Swap.SWAPPED, new)])
    assert lines(caplog) == [f"model {new} has taken over from {old}"]


async def test_a_pointer_is_followed(tmp_path: Path) -> None:
    versions = [published(tmp_path / "models" / f"model-{n}", untrained(n)) for n in range(3)]
    pointer = tmp_path / "models" / "current"
    pointer.write_text("model-0\n")
    watched = Watched(pointer)
    for n, written in enumerate(["model-0", "model-1\n", f" {tmp_path}/models/model-2 "]):
        pointer.write_text(written)
        await watched.watch.check()
        assert watched.answering() == versions[n]


async def test_a_link_is_followed(tmp_path: Path) -> None:
    versions = [published(tmp_path / f"model-{n}", untrained(n)) for n in range(2)]
    link = tmp_path / "current"
    link.symlink_to("model-0")
    watched = Watched(link)
    link.unlink()
    link.symlink_to("model-1")
    await watched.watch.check()
    assert watched.answering() == versions[1]


async def test_the_old_model_is_gone_at_once(place: Path, old: str) -> None:
    """By its reference counts: the worker's collector looks seldom, and never at what was loaded at the start."""
    watched = Watched(place)
    watched.answering()
    gone: list[weakref.ref[object]] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    for seed in range(1, 4):
        engine = watched.pipeline._predictor
        assert isinstance(engine, Engine)
        gone += map(
            weakref.ref, (engine, engine._model, engine._answers._items.scorer._exact.vectors, engine.vocabulary)
        )
        del engine
        published(place, untrained(seed))
        await watched.watch.check()
    assert [one() for one in gone] == [None] * len(gone)


async def test_loading_disturbs_neither_the_threads_nor_the_answers_of_the_model_at_work(place: Path, old: str) -> None:
    watched = Watched(place)
    engine = load_engine(Settings(model=place, device="cpu", threads=4))
    window = Window(["i1", "i2"], ["view", "view"], ["c1", None], [0, 1000])
    right = engine.predict([window])
    try:
        loading = asyncio.gather(*(asyncio.to_thread(watched.load, place) for _ in range(4)))
        while not loading.done():
            assert engine.predict([window]) == right
            await asyncio.sleep(0)
        await loading
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# Refused


def damage_weights(place: Path) -> None:
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def half_write(place: Path) -> None:
    (place / "vocabulary.json").unlink()


def break_manifest(place: Path) -> None:
    (place / "manifest.json").write_bytes(b"{")


def sign(place: Path, parts: Artifact) -> None:
    """Publish `parts` as they are."""
    published(place, parts)


def golden_of_another(place: Path) -> None:
    parts = untrained(1)
    golden = untrained(2).manifest.golden
    sign(place, msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden)))


def not_finite(place: Path) -> None:
    parts = untrained(1)
    with torch.no_grad():
        parts.model.behavior_head.bias[0] = torch.nan
    sign(place, parts)


def newer_schema(place: Path) -> None:
    manifest = msgspec.json.decode((place / "manifest.json").read_bytes())
    (place / "manifest.json").write_bytes(msgspec.json.encode({**manifest, "schema": 99}))


def another_rule(place: Path) -> None:
    sign(place, untrained(1, window=WindowRule(events=11)))


def no_model(place: Path) -> None:
    shutil.rmtree(place)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage_weights, "model.safetensors is damaged or was changed"),
        (half_write, "vocabulary.json is missing"),
        (break_manifest, "manifest.json is damaged"),
        (golden_of_another, "does not reproduce its golden answers"),
        (not_finite, "answers with numbers that are not finite"),
        (newer_schema, "upgrade the program"),
        (another_rule, "has another window rule, .*: restart the worker"),
        (no_model, "no model directory at"),
    ],
)
async def test_a_bad_model_is_refused_and_said_once(
    place: Path, old: str, spoil: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(place)
    published(place, untrained(1))
    spoil(place)
    for _ in range(3):
        await watched.watch.check()
    assert watched.answering() == old
    assert watched.told == [(Swap.REFUSED, old)]
    assert watched.loads <= 1, "it is looked at again only if it has changed"
    (line,) = lines(caplog)
    assert "\n" not in line
    assert line.startswith(f"model refused, {old} stays at work: ")
    assert re.search(reason, line)

    shutil.rmtree(place, ignore_errors=True)
    new = published(place, untrained(3))
    await watched.watch.check()
    assert watched.answering() == new, "the next good one takes over"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfe", b"a\nb", b"a\0b", b"x" * 5000, b"nowhere", b"x" * 4000], ids=repr
)
async def test_an_unreadable_pointer_is_refused(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    old = published(tmp_path / "model", untrained(0))
    pointer = tmp_path / "current"
    pointer.write_text("model")
    watched = Watched(pointer)
    pointer.write_bytes(content)
    for _ in range(2):
        await watched.watch.check()
    assert watched.told == [(Swap.REFUSED, old)]
    assert len(lines(caplog)) == 1
    pointer.unlink()
    await watched.watch.check()
    assert watched.told == [(Swap.REFUSED, old)] * 2, "another reason"
    assert watched.answering() == old
    with pytest.raises(ArtifactError):
        load_engine(watched.settings)


async def test_what_is_copied_file_by_file_takes_over_when_it_is_whole(
    place: Path, old: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Into the directory of the model at work, which goes on with what it has read."""
    watched = Watched(place)
    new = published(tmp_path / "new", untrained(1))
    for name in ("manifest.json", "README.md", "config.json", "vocabulary.json", "model.safetensors"):
        assert watched.answering() == old
        shutil.copyfile(tmp_path / "new" / name, place / name)
        await watched.watch.check()
    assert watched.answering() == new
    assert [swap for swap, _ in watched.told] == [Swap.REFUSED] * 2 + [Swap.SWAPPED]
    card, weights = lines(caplog)
    assert "README.md is damaged" in card
    assert "model.safetensors is damaged" in weights, "and that is said once, however long it takes"


async def test_a_bad_model_that_is_taken_back_and_put_there_again_is_said_again(place: Path, old: str) -> None:
    watched = Watched(place)
    for _ in range(2):
        another_rule(place)
        await watched.watch.check()
        sign(place, untrained(0))
        await watched.watch.check()
    assert watched.told == [(Swap.REFUSED, old)] * 2


async def test_a_model_that_is_replaced_while_it_is_read_is_not_blamed(place: Path, old: str) -> None:
    watched = Watched(place)
    third = untrained(2)

    def load(directory: Path) -> Engine:
        sign(place, third)
        raise ArtifactError("a file of one and a manifest of the other")

    published(place, untrained(1))
    watched.watch._load = load
    await watched.watch.check()
    assert watched.told == []
    watched.watch._load = watched.load
    await watched.watch.check()
    assert [swap for swap, _ in watched.told] == [Swap.SWAPPED]


@pytest.mark.parametrize("times", [1, 3, model_watch.WAITS])
async def test_the_moments_between_the_two_renames_of_publishers_are_waited_for(
    place: Path, old: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """So often nothing is there, and then the whole model."""
    watched = Watched(place)
    aside = place.with_name("aside")
    place.rename(aside)  # noqa: ASYNC240  # nothing else waits here
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == times:
            aside.rename(place)

    monkeypatch.setattr(model_watch, "sleep", wait)
    await watched.watch.check()
    assert watched.told == []
    assert waits == [model_watch.RENAME_S / model_watch.WAITS] * times


async def test_a_publisher_at_full_speed_is_never_blamed(
    place: Path, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real publishing in another thread, again and again: every version that takes over is one that was published."""
    monkeypatch.setattr(model_watch, "RENAME_S", THE_WORKERS)
    watched = Watched(place)
    parts = [untrained(seed) for seed in range(3)]
    versions = {old}
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            versions.update(published(place, one) for one in parts)

    publishing = asyncio.create_task(asyncio.to_thread(publish))
    try:
        for _ in range(20):
            await watched.watch.check()
    finally:
        stop.set()
        await publishing
    assert Swap.REFUSED not in [swap for swap, _ in watched.told]
    await watched.watch.check()
    assert watched.answering() == artifact.read_manifest(place).version
    assert {version for _, version in watched.told} <= versions


# Looking


def test_to_look_is_to_read_the_manifest_and_nothing_else(place: Path, old: str) -> None:
    for path in place.iterdir():
        if path.name != "manifest.json":
            path.write_bytes(b"")
    found = find(place)
    assert (found.version, found.directory) == (old, place)


def test_a_place_that_may_not_be_read(place: Path, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:  # root, who may be the one to test, may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ArtifactError, match="cannot read .*manifest.json: Permission denied"):
        find(place)


async def test_it_looks_again_and_again(place: Path, old: str) -> None:
    watched = Watched(place)
    running = asyncio.create_task(watched.watch.run(0.01))
    try:
        for seed in (1, 2):
            new = published(place, untrained(seed))
            async with asyncio.timeout(20):
                while (Swap.SWAPPED, new) not in watched.told:
                    await asyncio.sleep(0.01)
    finally:
        running.cancel()
