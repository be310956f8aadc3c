"""The demo's books and words, and its end when the worker ends; the whole of it is run in `tests/integration`."""

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from rich.console import Console

from stream_app import behaviors, demo
from stream_app.dead_letters import dead_letter
from stream_app.demo import DONE, Books, DemoError, Show, in_words, verdict
from stream_app.events import Reason, Rejected
from stream_app.settings import Settings
from tests.stream_app.records import NOW_MS, FakeRecord, event_record

PREDICTION = {
    "prediction_id": "user-events-0-0",
    "user_id": "u7",
    "next_behaviors": {"view": 0.25, "purchase": 0.625, "search": 0.125},
    "next_items": [{"item_id": name, "probability": p} for name, p in (("a", 0.5), ("b", 0.25), ("c", 0.1), ("d", 0))],
    "purchase_probability": 0.75,
}


def id_(offset: int) -> str:
    return f"user-events-0-{offset}"


def sent(books: Books, *offsets: int) -> Books:
    for offset in offsets:
        books.note_event(id_(offset), NOW_MS, event_record("u7", offset).value or b"")
    return books


def answer(books: Books, *offsets: int, delay_ms: int = 40) -> Books:
    for offset in offsets:
        books.note_prediction(
            id_(offset), NOW_MS + delay_ms, orjson.dumps({**PREDICTION, "prediction_id": id_(offset)})
        )
    return books


def reject(books: Books, offset: int) -> Books:
    letter = dead_letter(FakeRecord(offset=offset, value=b"x"), Rejected(Reason.INVALID, "no user"))
    books.note_dead_letter(dict(letter.headers))
    return books


# The books


def test_every_event_is_answered_once() -> None:
    books = reject(answer(sent(Books(), 0, 1, 2), 0, 1), 2)
    assert (books.missing, books.repeated, dict(books.dead_letters)) == (0, 0, {"invalid": 1})
    assert list(books.latencies_ms) == [40, 40]
    assert verdict(books, 3) == 0


def test_an_event_without_an_answer_is_missing() -> None:
    books = answer(sent(Books(), 0, 1, 2), 0, 2)
    assert books.missing == 1
    assert verdict(books, 3) == 1


def test_an_event_that_never_reached_the_topic_is_missing_too() -> None:
    books = answer(sent(Books(), 0, 1), 0, 1)
    assert (books.missing, verdict(books, 3)) == (0, 1)


def test_a_repeat_is_counted_and_no_fault() -> None:
    books = reject(answer(sent(Books(), 0, 1), 0, 0, 1), 1)
    assert (books.repeated, books.missing, verdict(books, 2)) == (2, 0, 0)


def test_an_answer_may_be_read_before_its_event() -> None:
    books = sent(answer(Books(), 0), 0)
    assert (books.missing, list(books.latencies_ms)) == (0, [])


# Words


@pytest.mark.parametrize("behavior", behaviors.load().names)
def test_every_behavior_has_its_words(behavior: str) -> None:
    assert behavior in DONE
    books = Books()
    books.note_event(id_(0), NOW_MS, orjson.dumps({"behavior": behavior, "item_id": "i3"}))
    did = DONE[behavior].format("i3")
    assert in_words(PREDICTION, books) == (
        f"u7 {did} → next: purchase 62%, view 25%; items a (50%), b (25%), c (10%); buys soon: 75%"
    )


def test_an_event_that_was_not_read_yet_and_a_behavior_of_somebody_else() -> None:
    books = Books()
    assert in_words(PREDICTION, books).startswith("u7 did something → next")
    books.note_event(id_(0), NOW_MS, b'{"behavior": "teleport"}')
    assert in_words(PREDICTION, books).startswith("u7 did something → next")
    books.note_event(id_(0), NOW_MS, b'{"behavior": "view"}')
    assert in_words(PREDICTION, books).startswith("u7 viewed something → next")


def test_the_summary_names_what_is_missing() -> None:
    console = Console(file=io.StringIO(), width=120)
    books = reject(answer(sent(Books(), *range(5)), 0, 0, 1), 2)
    console.print(demo._summary(books, Show(events=7)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = {
        line.strip(" │").split("│")[0].strip(): line.strip(" │").split("│")[-1].strip() for line in text.splitlines()
    }
    assert lines["events without an answer"] == str(2 + 2)
    assert lines["answers repeated"] == "1"
    assert lines["predictions"] == "3"
    assert lines["dead letters"] == "1 invalid"


# Ends


def shop() -> pl.DataFrame:
    return pl.DataFrame({"user_id": ["u"], "timestamp": [NOW_MS], "behavior": ["view"], "item_id": ["i"]})


def test_a_log_too_short_for_two_parts(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes((event_record("u", 0).value or b"") + b"\n")
    with pytest.raises(DemoError, match="1 events are too few"):
        demo.run(log, seconds=1, seed=0, behaviors=behaviors.load(), console=Console(file=io.StringIO()))


def test_a_worker_that_does_not_start_is_one_line_that_names_its_log(tmp_path: Path) -> None:
    model, log_path = tmp_path / "model", tmp_path / "worker.log"
    model.mkdir()
    (model / "manifest.json").write_bytes(b"damaged")
    with pytest.raises(DemoError) as caught:
        demo.play(shop(), model, seconds=1, console=Console(file=io.StringIO()), log_path=log_path)
    assert str(caught.value) == f"the worker did not start; see {log_path}"
    assert str(model) in log_path.read_text()


async def test_a_worker_that_ends_in_the_middle_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "REFRESH_S", 0.01)
    worker = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    worker.wait()
    feeding: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(DemoError, match="^the worker ended by itself with code 3$"):
        await demo._watch(feeding, worker, Settings(), Books(), Show(events=1))
    feeding.cancel()


async def test_a_demo_that_gets_no_answers_any_more_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "REFRESH_S", 0.01)
    monkeypatch.setattr(demo, "STALL_LIMIT_S", 0.05)
    feeding: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(0))
    books = answer(sent(Books(), 0, 1), 0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        async with asyncio.timeout(10):
            await demo._watch(feeding, worker, Settings(web_port=1), books, Show(events=2))
        worker.communicate(b"\n")
    assert verdict(books, 2) == 1
