"""The agent, with a real stream and a real pipeline; the broker's answers are given by hand.

A journal keeps what leaves the agent in the order in which it does: records sent, chunks acknowledged, offsets committed.
"""

import asyncio
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, MutableSet, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import permutations
from types import SimpleNamespace
from typing import Any, Self
from weakref import WeakSet

import faust
import pytest
from aiokafka.errors import KafkaTimeoutError
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from model.forecast import Forecast, Item
from model.window import Past, Window, WindowRule
from stream_app import agent as agents
from stream_app.agent import AT_A_STRETCH, RESTORED, CommitFailed, DeviceHangs, PredictionAgent, Refused
from stream_app.events import Rejected
from stream_app.intake import Chunk, ChunkLostError
from stream_app.observations import BatchReport
from stream_app.pipeline import Batch, EngineFailed, Outputs, Pipeline
from stream_app.predictions import Message
from stream_app.producing import Sendable
from stream_app.settings import Settings
from stream_app.tables import HistoryTable
from stream_app.turns import TURN_S
from tests.stream_app.records import FakeRecord, event_record
from tests.stream_app.test_pipeline import NAMES, Echo, echo, pipeline, read

PLACE, ELSEWHERE = TP("user-events", 0), TP("user-events", 1)
SETTINGS = Settings(partitions=1, chunks_prepared=1)
PREDICTIONS, CHANGELOG, LETTERS = SETTINGS.output_topic, SETTINGS.changelog_topic, SETTINGS.dead_letter_topic
NO_JSON = FakeRecord(offset=1, key=b"u", value=b"\xff")

Journal = list[tuple[str, Any]]


@dataclass
class Sent:
    """Messages for a partition on their way together, their delivery open."""

    topic: str
    partition: int
    messages: Sequence[Sendable]
    first: int  # offset
    delivery: asyncio.Future[list[int | None]]
    too_large: Callable[[str, Sendable], bool]

    def deliver(self) -> None:
        """The broker takes what is not too large for it."""
        offsets = iter(range(self.first, self.first + len(self.messages)))
        self.delivery.set_result([None if self.too_large(self.topic, one) else next(offsets) for one in self.messages])

    def fail(self, error: Exception) -> None:
        self.delivery.set_exception(error)

    @property
    def keys(self) -> list[bytes | None]:
        return [key for key, _, _ in self.messages]


class Parcel(list[Sendable]):
    """Messages that are not packed."""

    add = list.extend


class Deliveries:
    """Takes messages and leaves their delivery to the test."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.sent: list[Sent] = []
        self.entered = self.left = False
        self.too_large: Callable[[str, Sendable], bool] = lambda topic, message: False

    async def __aenter__(self) -> Self:
        self.entered = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    def parcel(self, messages: Sequence[Sendable] = ()) -> Parcel:
        return Parcel(messages)

    async def deliver(self, topic: str, partition: int, messages: Parcel) -> list[int | None]:
        assert self.entered
        assert not self.left
        if not messages:
            return []
        self.journal.append(("sent", topic))
        delivery = asyncio.get_running_loop().create_future()
        first = sum(len(sent.messages) for sent in self.to(topic))
        self.sent.append(Sent(topic, partition, messages, first, delivery, lambda *asked: self.too_large(*asked)))
        return list(await delivery)

    def open(self) -> list[Sent]:
        return [sent for sent in self.sent if not sent.delivery.done()]

    def to(self, topic: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.topic == topic]


class Consumer:
    """What the agent needs of one: it commits what was acknowledged, unless it is told not to."""

    def __init__(self, app: faust.App, journal: Journal) -> None:
        self.app, self.journal = app, journal
        self.unacked: MutableSet[ConsumerMessage] = set()
        self._unacked_messages = self.unacked  # where streams look
        self.assigned = {PLACE, ELSEWHERE}
        self.acked = -1
        self._acked: dict[TP, int] = {}
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.commits_nothing = self.refuses = False

    def assignment(self) -> set[TP]:
        return self.assigned

    def ack(self, message: ConsumerMessage) -> bool:
        self.journal.append(("acked", message.offset))
        self.acked = self._acked[message.tp] = message.offset
        return True

    async def commit(self, places: set[TP]) -> bool:
        await self.may_commit.wait()
        self.journal.append(("commit", self.acked + 1))
        if not self.commits_nothing:
            self.app.monitor.on_tp_commit({place: self._acked[place] + 1 for place in places})
        return not (self.commits_nothing or self.refuses)


class Stage:
    """An agent at work, and everything around it."""

    def __init__(self, steps: Pipeline | None, settings: Settings) -> None:
        self.journal: Journal = []
        self.app = faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable)
        self.app.consumer = self.consumer = Consumer(self.app, self.journal)
        self.app.flow_control.resume()
        self.table: HistoryTable = self.app.Table("histories", key_type=bytes, value_type=bytes, partitions=1)
        self.channel = self.app.channel()
        self.reports: list[BatchReport] = []
        self.pipeline = steps or pipeline()
        self.agent = PredictionAgent(self.app, settings, self.pipeline, self.table, self.reports.append)
        self.producer = Deliveries(self.journal)
        self.agent._deliveries = self.producer  # type: ignore[assignment]
        self._handed_over: dict[int, int] = {}  # the last offset, by partition

    async def hand_over(
        self, *records: FakeRecord, follows: int | None = None, generation: int = 0, turn_goes_on: bool = False
    ) -> None:
        """A chunk arrives, fetched so many generations of the group ago."""
        chunk = Chunk(records)
        chunk.turn_goes_on = turn_goes_on
        chunk.follows = self._handed_over.get(records[0].partition) if follows is None else follows
        self._handed_over[records[0].partition] = last = records[-1].offset
        tp = TP("user-events", records[0].partition)
        message = ConsumerMessage("user-events", tp.partition, last, 0.0, 0, (), None, chunk, None, tp=tp)
        message.generation_id = self.app.consumer_generation_id - generation
        await self.channel.put(self.app.create_event(None, chunk, {}, message))

    async def move_partitions(self) -> None:
        """A rebalance from its beginning to its end, faster than anybody looks."""
        self.app.flow_control.suspend()
        self.agent.forget_partitions()
        self.pipeline.forget()
        self.consumer.unacked.clear()
        self._handed_over.clear()
        self.app.flow_control.resume()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert not self.run.done(), self.run.exception()
                await asyncio.sleep(0.001)

    async def rest(self) -> None:
        """Let everything happen that can."""
        await asyncio.sleep(0.05)

    async def deliver_all(self, chunks: int = 1) -> None:
        """Until so many chunks are done in all, every record is delivered."""

        def done() -> bool:
            for record in self.producer.open():
                record.deliver()
            return len(self.reports) >= chunks

        await self.until(done)

    async def failure(self, *, deliver: bool = False) -> BaseException:
        """The one error that ends the agent; with `deliver`, every delivery is answered until then."""
        while deliver and not self.run.done():
            for sent in self.producer.open():
                sent.deliver()
            await asyncio.sleep(0.001)
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(self.run, 5)
        (error,) = caught.value.exceptions
        return error

    def journal_of(self, *kinds: str) -> Journal:
        return [entry for entry in self.journal if entry[0] in kinds]


@asynccontextmanager
async def on_stage(steps: Pipeline | None = None, settings: Settings = SETTINGS) -> AsyncIterator[Stage]:
    stage = Stage(steps, settings)
    stage.run = asyncio.create_task(stage.agent.run(stage.app.stream(stage.channel)))  # type: ignore[attr-defined]
    try:
        yield stage
    finally:
        stage.run.cancel()
        await asyncio.gather(stage.run, return_exceptions=True)


@asynccontextmanager
async def two_chunks_in_flight() -> AsyncIterator[tuple[Stage, list[Sent]]]:
    """Of different partitions, one of them with a reject; and their four deliveries, which are open."""
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=2, chunks_prepared=4)) as stage:
            await stage.hand_over(event_record("before", 6)._replace(partition=1))
            await stage.until(lambda: device.calls)
            await stage.hand_over(event_record("v", 7)._replace(partition=1))
            await stage.hand_over(event_record("u", 0), NO_JSON)
            await stage.rest()
            device.may_answer.set()
            await stage.until(lambda: len(stage.producer.sent) == 2)
            for sent in stage.producer.open():
                sent.deliver()
            await stage.until(lambda: len(stage.producer.open()) == 4)
            assert device.calls == [1, 2]
            yield stage, stage.producer.open()


def reason_of(letter: Sendable) -> str:
    return dict(letter[2])["dlq-reason"].decode()


class Version(Echo):
    """A model that says in its forecasts which one it is; the order of its behaviours depends on that too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.version = f"echo-{number}"
        self.behaviors = NAMES if number % 2 else NAMES[::-1]

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        time.sleep(0.002)  # longer than the event loop needs for anything
        share = dict(zip(NAMES, (0.75, 0.25), strict=True))
        items: list[Item] = [{"item_id": self.version, "probability": 0.5, "behavior": None}]
        answers = [echo(window) for window in windows]
        return [replace(one, next_items=items, next_behaviors=[share[n] for n in self.behaviors]) for one in answers]


class SlowDevice(Echo):
    """Answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        self.calls.append(len(windows))
        assert self.may_answer.wait(10)
        return [echo(window) for window in windows]


@contextmanager
def slow_device() -> Iterator[SlowDevice]:
    device = SlowDevice()
    try:
        yield device
    finally:
        device.may_answer.set()  # or its thread would wait


async def test_the_device_and_the_event_loop_take_short_turns() -> None:
    before = sys.getswitchinterval()
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device)) as stage:
            await stage.hand_over(event_record("u", 0))
            await stage.until(lambda: device.calls)
            assert sys.getswitchinterval() == pytest.approx(TURN_S)
            device.may_answer.set()
            await stage.deliver_all()
    assert sys.getswitchinterval() == before


# Acknowledged only when everything is delivered


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
async def test_nothing_is_acknowledged_before_the_last_delivery(order: Sequence[int]) -> None:
    """Two chunks of different partitions, two deliveries each; and then the letters of one."""
    async with two_chunks_in_flight() as (stage, first):
        stage.journal.clear()
        for number in order:
            await stage.rest()
            assert not stage.journal_of("acked", "commit")
            first[number].deliver()
        await stage.until(lambda: stage.producer.to(LETTERS))
        await stage.rest()
        assert not stage.journal_of("acked", "commit")
        assert stage.table.read(b"u") is None, "the store would be ahead of what may still fail"
        stage.producer.to(LETTERS)[0].deliver()
        await stage.until(lambda: len(stage.reports) == 3)
        assert stage.journal_of("acked", "commit") == [("acked", 7), ("acked", 1), ("commit", 2)]
        states = dict(message[:2] for sent in stage.producer.to(CHANGELOG) for message in sent.messages)
        assert {user: stage.table.read(user) for user in (b"before", b"u", b"v")} == states  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("topic", [PREDICTIONS, CHANGELOG, LETTERS])
async def test_a_failed_delivery_ends_the_agent_and_acknowledges_nothing(topic: str) -> None:
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0), NO_JSON)

        def failed() -> bool:
            for record in stage.producer.open():
                if record.topic != topic:
                    record.deliver()
            return bool(stage.producer.to(topic))

        await stage.until(failed)
        stage.producer.to(topic)[0].fail(KafkaTimeoutError())
        assert isinstance(await stage.failure(), KafkaTimeoutError)
        assert not stage.journal_of("acked", "commit")
        assert stage.table.read(b"u") is None
        assert stage.reports == []


async def test_a_failed_delivery_of_one_chunk_acknowledges_none_of_those_with_it() -> None:
    async with two_chunks_in_flight() as (stage, first):
        stage.journal.clear()
        for sent in first[:3]:
            sent.deliver()
        await stage.rest()
        first[3].fail(KafkaTimeoutError())
        assert isinstance(await stage.failure(), KafkaTimeoutError)
        assert not stage.journal_of("acked", "commit")
        assert stage.producer.left, "it is closed, whatever has happened"


async def test_a_model_that_answers_nothing_ends_the_agent_and_rejects_nothing() -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("no device")

    async with on_stage(pipeline(predictor=Echo(answer=broken))) as stage:
        await stage.hand_over(event_record("u", 0))
        assert isinstance(await stage.failure(), EngineFailed)
        assert not stage.journal


async def test_a_device_that_hangs_ends_the_agent_and_acknowledges_nothing() -> None:
    settings = Settings(partitions=1, chunks_prepared=1, device_timeout_s=0.2)
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), settings) as stage:
            await stage.hand_over(event_record("u", 0))
            error = await stage.failure()
            assert isinstance(error, DeviceHangs)
            assert str(error) == "the device has not answered 1 windows within 0.2 s"
            assert not stage.journal


async def test_a_device_that_answers_at_last_is_only_slow() -> None:
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device)) as stage:
            await stage.hand_over(event_record("u", 0))
            await stage.until(lambda: device.calls)
            await stage.rest()
            device.may_answer.set()
            await stage.deliver_all()


async def test_a_store_that_cannot_be_written_ends_the_agent_and_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with on_stage() as stage:
        monkeypatch.setattr(stage.table, "apply", full)
        await stage.hand_over(event_record("u", 0))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        for record in stage.producer.open():
            record.deliver()
        assert isinstance(await stage.failure(), OSError)
        assert not stage.journal_of("acked", "commit")


# Too large for the broker


@pytest.mark.parametrize("large", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}], ids=str)
async def test_a_prediction_too_large_becomes_a_dead_letter_that_counts_once(large: set[int]) -> None:
    async with on_stage() as stage:
        records = [event_record("u", 0), event_record("v", 1), event_record("w", 2)]
        ids = [b'"user-events-0-%d"' % offset for offset in large]
        stage.producer.too_large = lambda topic, message: (
            topic == PREDICTIONS and any(one in (message[1] or b"") for one in ids)
        )
        await stage.hand_over(*records)
        await stage.deliver_all()
        (letters,) = stage.producer.to(LETTERS)
        assert [(key, value) for key, value, _ in letters.messages] == [
            (records[offset].key, records[offset].value) for offset in sorted(large)
        ]
        assert {reason_of(letter) for letter in letters.messages} == {"emit"}
        (report,) = stage.reports
        assert (report.records, report.predictions) == (3, 3 - len(large))
        assert report.dead_letters == {"emit": len(large)}
        assert all(stage.table.read(user) is not None for user in (b"u", b"v", b"w")), (
            "the events happened all the same"
        )
        assert stage.journal_of("acked", "commit") == [("acked", 2), ("commit", 3)]


async def test_dead_letters_too_large_go_without_their_value_and_count_once() -> None:
    async with on_stage() as stage:
        stage.producer.too_large = lambda topic, message: topic == LETTERS and message[1] == NO_JSON.value
        await stage.hand_over(NO_JSON, event_record("", 2), NO_JSON._replace(offset=3))
        await stage.deliver_all()
        assert stage.producer.to(PREDICTIONS) == []
        all_letters, again = stage.producer.to(LETTERS)
        assert len(all_letters.messages) == 3
        assert [(key, value, reason_of((key, value, own))) for key, value, own in again.messages] == [
            (b"u", None, "undecodable")
        ] * 2
        assert [dict(own)["dlq-value-omitted"] for _, _, own in again.messages] == [b"1"] * 2
        assert stage.reports[0].dead_letters == {"undecodable": 2, "invalid": 1}


async def test_a_dead_letter_refused_even_then_ends_the_agent() -> None:
    async with on_stage() as stage:
        stage.producer.too_large = lambda topic, _: topic == LETTERS
        await stage.hand_over(NO_JSON)
        error = await stage.failure(deliver=True)
        assert isinstance(error, Refused)
        assert str(error) == f"{LETTERS} refuses a dead letter even without its value"
        assert not stage.journal_of("acked", "commit")


async def test_a_history_that_is_refused_ends_the_agent() -> None:
    """There is no way to go on: the user's next prediction would not know of this event."""
    async with on_stage() as stage:
        stage.producer.too_large = lambda topic, message: topic == CHANGELOG and message[0] == b"v"
        await stage.hand_over(event_record("u", 0), event_record("v", 1))
        error = await stage.failure(deliver=True)
        assert isinstance(error, Refused)
        assert str(error) == f"{CHANGELOG} refuses a history for its size"
        assert not stage.journal_of("acked", "commit")
        assert stage.table.read(b"u") is None


# Some in flight, some prepared


async def test_chunks_of_different_partitions_go_to_the_device_together() -> None:
    with slow_device() as model:
        async with on_stage(pipeline(predictor=model), Settings(partitions=2, chunks_prepared=4)) as stage:
            await stage.hand_over(event_record("u", 0))
            await stage.until(lambda: model.calls)  # the first is on the device; now three more get ready
            await stage.hand_over(event_record("v", 1))
            await stage.hand_over(event_record("w", 7)._replace(partition=1))
            await stage.hand_over(event_record("x", 2))
            await stage.rest()
            model.may_answer.set()
            await stage.deliver_all(chunks=4)
    assert model.calls == [1, 2, 1], "the one behind is of a partition that is under way already"
    assert [(sent.keys, sent.partition) for sent in stage.producer.to(CHANGELOG)] == [
        ([b"u"], 0), ([b"v"], 0), ([b"w"], 1), ([b"x"], 0),
    ]  # fmt: skip
    assert [report.partition for report in stage.reports] == [0, 0, 1, 0]
    assert ["infer" in report.seconds for report in stage.reports] == [True, True, False, True], "counted once"


async def test_chunks_that_were_fetched_together_go_to_the_device_together() -> None:
    model = Echo()
    async with on_stage(pipeline(predictor=model), Settings(partitions=2, chunks_prepared=4)) as stage:
        await stage.hand_over(event_record("u", 0), turn_goes_on=True)
        await stage.rest()
        assert model.calls == [], "the other one is not there yet"
        await stage.hand_over(event_record("v", 0)._replace(partition=1))
        await stage.deliver_all(chunks=2)
    assert model.calls == [2]


async def test_chunks_that_faust_drops_are_not_waited_for() -> None:
    model = Echo()
    async with on_stage(pipeline(predictor=model), Settings(partitions=2, chunks_prepared=4)) as stage:
        await stage.hand_over(event_record("u", 0), turn_goes_on=True)
        await stage.deliver_all()
    assert model.calls == [1]


async def test_the_next_chunks_are_prepared_answered_and_sent_while_the_last_is_committed() -> None:
    model = Echo()
    async with on_stage(pipeline(predictor=model)) as stage:
        stage.consumer.may_commit.clear()
        for offset in range(6):
            await stage.hand_over(event_record(f"u{offset}", offset))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        await stage.rest()
        folded = [stage.pipeline.cache.get(f"u{offset}", 0).last_offset == offset for offset in range(6)]
        assert folded == [True] * 4 + [False] * 2, "the fourth waits to be put there, the others wait their turn"
        assert model.calls == [1, 1], "one is under way, one waits to be so"

        for _ in range(2):  # the first is delivered and being committed, and then the second is delivered
            for sent in stage.producer.open():
                sent.deliver()
            await stage.rest()
        a_chunk = [("sent", PREDICTIONS), ("sent", CHANGELOG)]
        assert stage.journal == [*a_chunk, ("acked", 0), *a_chunk], "the third waits for the commit of the first"
        assert model.calls == [1, 1, 1], "and the fourth is not even on the device before that"

        stage.consumer.may_commit.set()
        await stage.deliver_all(chunks=6)
        done = [entry for offset in range(6) for entry in (("acked", offset), ("commit", offset + 1))]
        assert stage.journal_of("acked", "commit") == done
        assert [message[0] for sent in stage.producer.to(CHANGELOG) for message in sent.messages] == [
            b"u%d" % offset for offset in range(6)
        ]


@asynccontextmanager
async def concluding_slowly(model: Echo) -> AsyncIterator[tuple[Stage, list[Callable[[], object]]]]:
    """After each part of a chunk the device has its turn; then the first of what the test puts there is called."""
    async with on_stage(pipeline(predictor=model)) as stage:
        then: list[Callable[[], object]] = []
        conclude = stage.pipeline.conclude

        def slowly(batch: Batch, forecasts: Sequence[Forecast | Rejected]) -> Outputs:
            time.sleep(0.02)
            if then:
                then.pop(0)()
            return conclude(batch, forecasts)

        stage.pipeline.conclude = slowly  # type: ignore[method-assign]
        yield stage, then


async def test_the_device_has_the_next_chunks_while_the_last_are_concluded() -> None:
    """And no third ones, before the first are with the broker."""
    model = Echo()
    async with concluding_slowly(model) as (stage, then):
        on_device: list[int] = []
        then += [lambda: on_device.append(len(model.calls))] * 4
        large = [event_record(f"u{offset}", offset) for offset in range(4 * AT_A_STRETCH)]
        await stage.hand_over(*large)
        for offset in range(len(large), len(large) + 2):
            await stage.hand_over(event_record("v", offset))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        await stage.rest()
        assert on_device[3] == 2, "while the last of the first chunk's parts was concluded"
        assert model.calls == [len(large), 1]
        await stage.deliver_all(chunks=3)
        assert model.calls == [len(large), 1, 1]


async def test_a_swap_waits_for_all_that_the_old_model_has_inferred() -> None:
    """One group is being concluded and the next one has been on the device when another model comes."""
    model = Version(1)
    async with concluding_slowly(model) as (stage, then):
        swaps: list[asyncio.Task[None]] = []
        then += [int, int, lambda: swaps.append(asyncio.create_task(stage.agent.swap(Version(2))))]
        records = [event_record(f"u{offset}", offset) for offset in range(9 * AT_A_STRETCH)]
        for start in range(0, len(records), 3 * AT_A_STRETCH):
            await stage.hand_over(*records[start : start + 3 * AT_A_STRETCH])
        await stage.deliver_all(chunks=3)
        await asyncio.gather(*swaps)
        assert [versions(sent) for sent in stage.producer.to(PREDICTIONS)] == [{"echo-1"}, {"echo-1"}, {"echo-2"}]


async def test_forecasts_are_let_go_of_when_they_are_concluded() -> None:
    """Those of a large group are tens of megabytes, and the next group may be an hour away."""
    model, made = Echo(), list[weakref.ref[list[Forecast]]]()

    class Answers(list[Forecast]):
        """One that can be referred to."""

    def infer(windows: Sequence[Window]) -> list[Forecast]:
        answers = Answers(map(echo, windows))
        made.append(weakref.ref(answers))
        return answers

    async with on_stage(pipeline(predictor=model)) as stage:
        stage.pipeline.infer = infer  # type: ignore[method-assign, assignment]
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()
        (answers,) = made
        assert answers() is None


@pytest.mark.parametrize("resumed", [False, True])
async def test_partitions_may_move_amid_the_conclusion_of_chunks_and_no_room_is_lost(*, resumed: bool) -> None:
    """With the next ones on the device, or inferred; what was under way then never leaves, and what comes later does."""
    model = Echo()
    async with concluding_slowly(model) as (stage, then):
        stage.app.topics.acking_topics.add("user-events")
        large = [event_record(f"u{offset}", offset) for offset in range(4 * AT_A_STRETCH)]
        for _ in range(3):  # more often than there is room for groups that are lost
            moved = asyncio.Event()
            then[:] = [int, int, moved.set]
            await stage.hand_over(*large)
            await stage.hand_over(event_record("v", len(large)))
            await asyncio.wait_for(moved.wait(), 5)
            if resumed:
                await stage.move_partitions()
            else:
                stage.app.flow_control.suspend()
                await stage.rest()
                await stage.move_partitions()
            await stage.rest()
            assert not stage.producer.sent
        assert stage.agent.working_s == 0
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()


def record_of(user: str, offset: int) -> FakeRecord:
    """An event of a user; with an exclamation mark the erasure, of "?" one without a key."""
    if user.endswith("!"):
        return FakeRecord(offset=offset, key=user[:-1].encode())
    record = event_record(user, offset)
    return record._replace(key=None) if user == "?" else record


@pytest.mark.parametrize(
    ("first", "second", "leaves"),
    [
        ("u u", "v v", True),
        ("u", "u", True),
        ("u v w", "w u v", True),
        ("u u", "u u", True),
        ("? ?", "?", True),
        ("u", "v!", False),
        ("u!", "v", False),
    ],
)
async def test_a_chunk_leaves_before_the_last_is_committed_if_histories_can_tell_both_again(
    first: str, second: str, leaves: bool
) -> None:
    """Nobody may come again who was removed on the way."""
    offsets = iter(range(10))
    async with on_stage(settings=Settings(partitions=1, chunk_records_per_user=2)) as stage:
        stage.consumer.may_commit.clear()
        for users in (first, second):
            await stage.hand_over(*(record_of(user, next(offsets)) for user in users.split()))
        await stage.until(lambda: stage.producer.sent)
        await stage.rest()
        for sent in stage.producer.open():
            sent.deliver()
        await stage.until(lambda: stage.consumer.acked == len(first.split()) - 1)
        await stage.rest()
        assert bool(stage.producer.open()) == leaves
        stage.consumer.may_commit.set()
        await stage.deliver_all(2)


@pytest.mark.parametrize("chunk", [0, 1])
async def test_a_chunk_with_which_users_expire_is_alone_uncommitted(chunk: int) -> None:
    expired: list[list[str]] = [[], []]
    expired[chunk] = ["w"]
    async with on_stage() as stage:
        stage.pipeline._expiry = SimpleNamespace(expired=lambda *_: expired.pop(0), forget=lambda: None)  # type: ignore[assignment]
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("v", 1))
        await stage.until(lambda: stage.producer.sent)
        await stage.rest()
        for sent in stage.producer.open():
            sent.deliver()
        await stage.until(lambda: stage.consumer.acked == 0)
        await stage.rest()
        assert not stage.producer.open()
        stage.consumer.may_commit.set()
        await stage.deliver_all(2)


async def test_the_fold_is_told_what_is_committed_and_nothing_that_is_not_known_to_be() -> None:
    async with on_stage() as stage:
        told: list[int] = []
        fold = stage.pipeline.fold
        stage.pipeline.fold = lambda events, batch, settled: told.append(settled) or fold(events, batch, settled)  # type: ignore[method-assign, func-returns-value]
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 7), event_record("v", 8))  # what is read first was committed before
        await stage.until(lambda: stage.producer.sent)
        await stage.hand_over(event_record("w", 9))
        await stage.until(lambda: len(told) == 2)
        assert told == [7, 7]
        stage.consumer.may_commit.set()
        await stage.deliver_all(2)
        await stage.hand_over(event_record("x", 10))
        await stage.deliver_all(3)
        assert told == [7, 7, 10]

        stage.app.flow_control.suspend()  # partitions are moving, and what was committed is not known
        stage.agent.forget_partitions()
        stage.app.flow_control.resume()
        stage._handed_over.clear()
        await stage.hand_over(event_record("y", 5))
        await stage.deliver_all(4)
        assert told == [7, 7, 10, 5]


async def test_a_commit_that_ends_after_a_rebalance_settles_nothing() -> None:
    async with on_stage() as stage:
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 0))
        await stage.until(lambda: stage.producer.sent)
        for sent in stage.producer.open():
            sent.deliver()
        await stage.until(lambda: stage.consumer.acked == 0)
        await stage.move_partitions()
        stage.consumer.may_commit.set()
        await stage.until(lambda: len(stage.reports) == 1)
        assert stage.agent._settled == {}


async def test_of_another_partition_a_chunk_leaves_before_the_last_is_committed_whatever_is_in_it() -> None:
    async with on_stage(settings=Settings(partitions=2, chunk_records_per_user=1, chunks_prepared=1)) as stage:
        stage.consumer.may_commit.clear()
        await stage.hand_over(record_of("u!", 0))
        await stage.until(lambda: stage.producer.sent)
        await stage.hand_over(record_of("u!", 0)._replace(partition=1))
        for sent in stage.producer.open():
            sent.deliver()
        await stage.until(lambda: stage.producer.open())
        assert stage.journal_of("acked", "commit") == [("acked", 0)]
        stage.consumer.may_commit.set()
        await stage.deliver_all(2)


async def test_a_commit_that_fails_while_the_next_chunk_is_delivered_acknowledges_nothing_more() -> None:
    async with on_stage() as stage:
        stage.consumer.refuses = True
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("v", 1))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        for sent in stage.producer.open():
            sent.deliver()
        await stage.until(lambda: len(stage.producer.sent) == 4)
        stage.consumer.may_commit.set()
        assert isinstance(await stage.failure(deliver=True), CommitFailed)
        assert stage.journal_of("acked") == [("acked", 0)]


async def test_more_is_wanted_when_all_that_came_is_on_its_way_out() -> None:
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=1, chunks_prepared=4)) as stage:
            stage.app.topics.acking_topics.add("user-events")
            await asyncio.wait_for(stage.agent.wants_more(), 1)
            await stage.hand_over(event_record("u", 0))
            waiting = asyncio.create_task(stage.agent.wants_more())
            await stage.until(lambda: device.calls)
            await asyncio.sleep(3 * agents.MOVING_S)
            assert not waiting.done(), "it is on the device"
            device.may_answer.set()
            await stage.until(waiting.done)
            assert len(stage.producer.open()) == 2, "it is not delivered yet"
            await stage.hand_over(event_record("u", 1))
            waiting = asyncio.create_task(stage.agent.wants_more())
            await asyncio.sleep(3 * agents.MOVING_S)
            assert not waiting.done(), "it is answered, and waits for the one before it"
            for sent in stage.producer.open():
                sent.deliver()
            stage.consumer.unacked.pop()  # what the fake never does
            await stage.until(waiting.done)


async def test_more_is_wanted_when_what_waited_is_dropped() -> None:
    """A changelog is to be read after a rebalance, however long the device takes."""
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=1, chunks_prepared=4)) as stage:
            stage.app.topics.acking_topics.add("user-events")
            for offset in range(3):
                await stage.hand_over(event_record("u", offset))
            await stage.until(lambda: len(stage.consumer.unacked) == 3)
            await stage.move_partitions()
            assert not device.may_answer.is_set()
            await asyncio.wait_for(stage.agent.wants_more(), 1)


class StepByStep(Echo):
    """Answers once for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(0)

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        self.calls.append(len(windows))
        assert self.steps.acquire(timeout=10)
        return [echo(window) for window in windows]


@pytest.mark.parametrize("chunks_prepared", [1, 2, 4])
async def test_no_more_chunks_are_in_work_than_the_cache_has_room_for(chunks_prepared: int) -> None:
    """It must keep what is folded and not written; everything that can wait does so here, as full as it can be."""
    settings = Settings(partitions=40, chunks_prepared=chunks_prepared)
    device = StepByStep()
    async with on_stage(pipeline(predictor=device), settings) as stage:
        stage.app.topics.acking_topics.add("user-events")
        for partition in range(40):
            await stage.hand_over(event_record("u", 0)._replace(partition=partition))
        for calls in (1, 2, 3, 4, 5):
            await stage.rest()
            if calls == 2:
                await stage.deliver_all()
            device.steps.release()
        await stage.rest()
        in_work = len(stage.consumer.unacked) - len(stage.reports)  # the fake never takes out what is acknowledged
        device.steps.release(100)
    assert 3 * chunks_prepared < in_work <= settings.chunks_in_work


async def test_a_failure_throws_the_prepared_chunk_away() -> None:
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("v", 1))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        prediction, change = stage.producer.sent
        prediction.fail(KafkaTimeoutError())
        change.deliver()
        await stage.failure()
        assert [sent.keys for sent in stage.producer.sent] == [[b"u"], [b"u"]]


# The commit


async def test_a_commit_that_never_succeeds_ends_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "COMMIT_ATTEMPTS", 3)
    async with on_stage() as stage:
        stage.consumer.commits_nothing = True
        await stage.hand_over(event_record("u", 0))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        for record in stage.producer.open():
            record.deliver()
        error = await stage.failure()
        assert isinstance(error, CommitFailed)
        assert str(error) == "offset 1 of user-events-0 could not be committed"
        assert stage.journal_of("commit") == [("commit", 1)] * 3


async def test_a_commit_that_the_broker_refuses_ends_the_agent_though_faust_notes_it() -> None:
    """The group has moved on without this worker: what is prepared must not be written over its successor's states."""
    async with on_stage() as stage:
        stage.consumer.refuses = True
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("u", 1))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        for record in stage.producer.open():
            record.deliver()
        assert isinstance(await stage.failure(), CommitFailed)
        assert len(stage.producer.sent) == 2


async def test_what_has_not_begun_when_partitions_move_is_dropped() -> None:
    async with on_stage() as stage:
        stage.app.topics.acking_topics.add("user-events")
        for offset in range(3):
            await stage.hand_over(event_record("u", offset))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        await stage.rest()
        assert len(stage.consumer.unacked) == 3
        stage.app.flow_control.suspend()  # the first thing that Faust does when partitions are revoked
        await stage.deliver_all()
        await stage.until(lambda: len(stage.consumer.unacked) == 1)  # the fake never takes out what is acknowledged
        await stage.rest()
        assert len(stage.producer.sent) == 2
        assert stage.journal_of("acked") == [("acked", 0)]


async def test_a_rebalance_does_not_wait_for_the_device() -> None:
    """What is on it, what waits for it, and what waits to be put there: nothing may leave, and nobody waits for it."""
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=2, chunks_prepared=2)) as stage:
            stage.app.topics.acking_topics.add("user-events")
            for offset in range(5):
                await stage.hand_over(event_record("u", offset))
            await stage.until(lambda: len(stage.consumer.unacked) == 1 + 2 + 1)
            stage.app.flow_control.suspend()
            await stage.until(lambda: not stage.consumer.unacked)  # what Faust's `wait_empty` waits for
            assert not device.may_answer.is_set()
            await stage.move_partitions()
            device.may_answer.set()
            await stage.rest()
            assert device.calls == [1]
            assert not stage.journal


async def test_what_is_answered_and_not_delivered_when_partitions_move_is_dropped() -> None:
    async with on_stage() as stage:
        stage.app.topics.acking_topics.add("user-events")
        for offset in range(3):
            await stage.hand_over(event_record("u", offset))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        await stage.until(lambda: sum(stage.pipeline._predictor.calls) == 2)  # type: ignore[attr-defined]  # Echo's
        stage.app.flow_control.suspend()
        await stage.deliver_all()
        await stage.until(lambda: len(stage.consumer.unacked) == 1)  # the fake never takes out what is acknowledged
        assert stage.journal_of("sent", "acked") == [("sent", PREDICTIONS), ("sent", CHANGELOG), ("acked", 0)]
        assert len(stage.reports) == 1


@pytest.mark.parametrize("where", ["waiting", "on the device", "answered"])
async def test_what_was_folded_before_partitions_moved_never_leaves_even_if_the_flow_has_resumed(where: str) -> None:
    """A slow device may see neither the stop nor the start of the flow."""
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=1, chunks_prepared=4)) as stage:
            stage.app.topics.acking_topics.add("user-events")
            await stage.hand_over(event_record("u", 0))
            await stage.until(lambda: device.calls)
            if where == "waiting":
                await stage.hand_over(event_record("u", 1))
                await stage.rest()
            if where == "answered":
                device.may_answer.set()
                await stage.until(lambda: len(stage.producer.sent) == 2)
                await stage.hand_over(event_record("u", 1))  # answered while the first is under way
                await stage.until(lambda: len(device.calls) == 2)
                await stage.rest()
                await stage.move_partitions()
                await stage.deliver_all()
            else:
                await stage.move_partitions()
            device.may_answer.set()
            await stage.rest()
            await stage.hand_over(event_record("u", 0))  # it comes again
            before = len(stage.producer.sent)
            assert before == (2 if where == "answered" else 0)
            await stage.deliver_all(2 if where == "answered" else 1)
            assert len(stage.producer.sent) == before + 2
            assert stage.journal_of("acked")[-1] == ("acked", 0)
            assert stage.agent.working_s == 0


async def test_a_chunk_that_comes_after_partitions_moved_is_not_dropped_with_one_from_before() -> None:
    """One waited for the next turn on the device, and they would have gone there together: a loss nobody noticed."""
    device = StepByStep()
    async with on_stage(pipeline(predictor=device), Settings(partitions=2, chunks_prepared=4)) as stage:
        try:
            for offset in range(3):
                await stage.hand_over(event_record("u", offset))
            await stage.until(lambda: len(device.calls) == 1)
            await stage.rest()
            device.steps.release()
            await stage.until(lambda: len(device.calls) == 2)  # the second is on the device, the third next in turn
            await stage.deliver_all()
            stage.app.flow_control.suspend()
            await asyncio.sleep(2.5 * agents.MOVING_S)  # it is dropped, and must be forgotten
            await stage.move_partitions()
            await stage.hand_over(event_record("v", 7)._replace(partition=1))
            await stage.rest()
        finally:
            device.steps.release(10)
        await stage.deliver_all(2)
        assert [sent.keys for sent in stage.producer.to(CHANGELOG)] == [[b"u"], [b"v"]]


async def test_a_partition_that_went_elsewhere_is_committed_there() -> None:
    async with on_stage() as stage:
        stage.consumer.commits_nothing, stage.consumer.assigned = True, set()
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()
        assert stage.journal_of("commit") == [("commit", 1)]


# Another model


async def test_what_is_on_the_device_when_the_model_is_swapped_is_encoded_as_its_own() -> None:
    with slow_device() as device:
        async with on_stage(pipeline(predictor=device), Settings(partitions=2, chunks_prepared=4)) as stage:
            await stage.hand_over(event_record("u", 0))
            await stage.until(lambda: device.calls)
            await stage.hand_over(event_record("v", 5)._replace(partition=1))
            swap = asyncio.create_task(stage.agent.swap(Version(2)))
            await stage.rest()
            assert not swap.done(), "it waits for the device, and intake goes on meanwhile"
            device.may_answer.set()
            await stage.deliver_all(2)
            await swap
    assert [versions(sent) for sent in stage.producer.to(PREDICTIONS)] == [{"echo-1"}, {"echo-2"}]


async def test_an_idle_worker_swaps_at_once_and_forgets_the_old_model() -> None:
    old = Version(1)
    async with on_stage(pipeline(predictor=old)) as stage:
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()
        await asyncio.wait_for(stage.agent.swap(Version(2)), 1)
        gone = weakref.ref(old)
        del old
        assert gone() is None
        await stage.hand_over(event_record("u", 1))
        await stage.deliver_all(2)
    assert [versions(sent) for sent in stage.producer.to(PREDICTIONS)] == [{"echo-1"}, {"echo-2"}]


class Remembering(Version):
    """Keeps states of whom it has answered, and of whom it is told."""

    def __init__(self, number: int, known: Sequence[str] = ()) -> None:
        super().__init__(number)
        self.known = list(known)
        self.restored: list[list[str]] = []
        self.may_restore = threading.Event()
        self.may_restore.set()

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        self.calls.append(len(windows))
        return super().predict(windows)

    def recent_users(self) -> list[str]:
        return self.known

    def restore(self, pasts: Sequence[Past]) -> bool:
        self.restored.append([past.user_id for past in pasts])
        assert self.may_restore.wait(10)
        if "boom" in self.restored[-1]:
            raise RuntimeError("no memory\nleft")
        return True


async def test_in_idle_time_users_of_the_old_model_are_restored_a_few_at_a_time() -> None:
    users = [f"u{n}" for n in range(2 * RESTORED + 3)]
    new = Remembering(2)
    new.may_restore.clear()
    async with on_stage(pipeline(predictor=Remembering(1, users))) as stage:
        await stage.hand_over(*[event_record(user, n) for n, user in enumerate(users)])
        await stage.deliver_all()
        await stage.agent.swap(new)
        await stage.until(lambda: new.restored)
        await stage.hand_over(event_record("live", len(users)))
        await stage.rest()
        assert (len(new.restored), new.calls) == (1, [])
        new.may_restore.set()
        await stage.until(lambda: new.calls)
        assert len(new.restored) == 1, "a chunk waits for one small batch only"
        await stage.deliver_all(2)
        await stage.until(lambda: len(new.restored) == 3)
    assert [user for some in new.restored for user in some] == users
    assert max(map(len, new.restored)) == RESTORED


async def test_a_device_that_hangs_in_idle_time_ends_the_agent_too() -> None:
    settings = Settings(partitions=1, chunks_prepared=1, device_timeout_s=0.2)
    old, new = Remembering(1, ["u0"]), Remembering(2)
    new.may_restore.clear()
    async with on_stage(pipeline(predictor=old), settings) as stage:
        await stage.hand_over(event_record("u0", 0))
        await stage.until(lambda: old.calls)
        await stage.deliver_all()
        await stage.agent.swap(new)
        error = await stage.failure()
        new.may_restore.set()
    assert isinstance(error, DeviceHangs)
    assert str(error) == "the device has not answered 1 windows within 0.2 s"


async def test_states_that_cannot_be_restored_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    new = Remembering(2)
    async with on_stage(pipeline(predictor=Remembering(1, ["boom"] * 2 + ["u"]))) as stage:
        await stage.hand_over(event_record("boom", 0), event_record("u", 1))
        await stage.deliver_all()
        await stage.agent.swap(new)
        await stage.until(lambda: "not computed in idle time: no memory left" in caplog.text)
        await stage.hand_over(event_record("u", 2))
        await stage.deliver_all(2)
    assert len(new.restored) == 1


async def test_a_model_that_may_not_take_over_stops_nothing() -> None:
    async with on_stage() as stage:
        with pytest.raises(ValueError, match="model echo-1 has another window rule"):
            await stage.agent.swap(Echo(WindowRule(events=99)))
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()


@given(st.lists(st.sampled_from(["chunk", "chunk elsewhere", "swap", "a moment", "deliver", "move"]), max_size=25))
@hypothesis_settings(max_examples=40)
def test_what_one_model_inferred_carries_its_version_whenever_models_are_swapped(moments: list[str]) -> None:
    """No batch has two, none has another one's, and of each partition they come in the order of the swaps."""
    asyncio.run(swap_amid(moments))


async def swap_amid(moments: list[str]) -> None:
    async with on_stage(pipeline(predictor=Version(1)), Settings(partitions=2, chunks_prepared=2)) as stage:
        swaps: list[asyncio.Task[None]] = []
        for offset, moment in enumerate(moments):
            if moment == "swap":
                swaps.append(asyncio.create_task(stage.agent.swap(Version(2 + len(swaps)))))
            elif moment == "move":
                await stage.move_partitions()
            elif moment == "a moment":
                await asyncio.sleep(0.001)
            elif moment == "deliver":
                deliver_open(stage)
            else:
                place = PLACE if moment == "chunk" else ELSEWHERE
                records = [event_record(f"{user}-{place.partition}", 10 * offset + user) for user in range(3)]
                await stage.hand_over(*[record._replace(partition=place.partition) for record in records])
        await asyncio.gather(*swaps)
        await stage.hand_over(*[event_record("last", 10 * len(moments) + user) for user in range(3)])
        await stage.until(lambda: deliver_open(stage) and has_answered(stage, b"last"))
        numbers: dict[int, list[int]] = {0: [], 1: []}
        for sent in stage.producer.to(PREDICTIONS):
            (version,) = versions(sent)
            numbers[sent.partition].append(int(version.removeprefix("echo-")))
        assert all(found == sorted(found) for found in numbers.values())
        assert numbers[0][-1] == 1 + len(swaps)


def deliver_open(stage: Stage) -> bool:
    for sent in stage.producer.open():
        sent.deliver()
    return True


def has_answered(stage: Stage, user: bytes) -> bool:
    return any(user in sent.keys for sent in stage.producer.to(PREDICTIONS))


def versions(sent: Sent) -> set[str]:
    """The versions in a batch of predictions; each must be that of the model which inferred it, if that has said so."""
    found = [read(Message(*message)) for message in sent.messages]
    for prediction in found:
        assert prediction.next_behaviors == {"view": 0.75, "purchase": 0.25}
        said = prediction.next_items[0].item_id
        assert said == prediction.model_version or not said.startswith("echo-")
    return {prediction.model_version for prediction in found}


# What else may happen


async def test_a_lost_chunk_ends_the_agent_before_the_one_behind_it_is_folded() -> None:
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()
        await stage.hand_over(event_record("u", 9), follows=8)
        with pytest.raises(ChunkLostError):
            await asyncio.wait_for(unpacked(stage), 5)
        assert stage.pipeline.cache.get("u", 0).last_offset == 0
        assert stage.journal_of("acked") == [("acked", 0)]


async def test_a_chunk_from_before_a_rebalance_is_neither_worked_on_nor_acknowledged() -> None:
    """Faust skips it. Without its Cython extension it would also acknowledge it, and somebody's records with it."""
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0), generation=1)
        await stage.rest()
        assert not stage.journal


async def test_a_chunk_that_faust_skips_does_not_stop_the_fetching() -> None:
    """It never gets on the device; Faust's weak set of what is not acknowledged must let go of it."""
    async with on_stage() as stage:
        stage.app.topics.acking_topics.add("user-events")
        stage.consumer.unacked = stage.consumer._unacked_messages = WeakSet()
        await stage.hand_over(event_record("u", 0), generation=1)
        await stage.rest()
        await asyncio.wait_for(stage.agent.wants_more(), 1)


async def unpacked(stage: Stage) -> None:
    raise await stage.failure()


async def test_for_how_long_the_chunk_in_work_has_been_so() -> None:
    async with on_stage() as stage:
        assert stage.agent.working_s == 0
        await stage.hand_over(event_record("u", 0))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        before = stage.agent.working_s
        await stage.rest()
        assert stage.agent.working_s >= before + 0.04
        await stage.deliver_all()
        assert stage.agent.working_s == 0
        assert set(stage.reports[0].seconds) == {"decode", "fold", "infer", "score", "emit", "ack"}
        assert stage.reports[0].seconds["emit"] >= 0.04
