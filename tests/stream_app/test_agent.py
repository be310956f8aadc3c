"""The agent, with a real stream and a real pipeline; the broker's answers are given by hand.

A journal keeps what leaves the agent in the order in which it does: records sent, chunks acknowledged, offsets committed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import faust
import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from faust.exceptions import ProducerSendError
from faust.types import TP
from faust.types.tuples import ConsumerMessage, RecordMetadata

from stream_app import agent as agents
from stream_app.agent import CommitFailed, PredictionAgent
from stream_app.intake import Chunk, ChunkLostError
from stream_app.observations import BatchReport
from stream_app.pipeline import EngineFailed, Pipeline
from stream_app.predictions import Header
from stream_app.settings import Settings
from stream_app.tables import HistoryTable
from tests.stream_app.records import FakeRecord, event_record
from tests.stream_app.test_pipeline import Echo, pipeline

PLACE, ELSEWHERE = TP("user-events", 0), TP("user-events", 1)
SETTINGS = Settings(partitions=1, chunks_prepared=1)
PREDICTIONS, CHANGELOG, LETTERS = SETTINGS.output_topic, SETTINGS.changelog_topic, SETTINGS.dead_letter_topic
NO_JSON = FakeRecord(offset=1, key=b"u", value=b"\xff")

Journal = list[tuple[str, Any]]


@dataclass
class Sent:
    """A record with the producer, its delivery open."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header] | None
    offset: int
    delivery: asyncio.Future[RecordMetadata]
    partition: int = 0

    def deliver(self) -> None:
        place = TP(self.topic, self.partition)
        self.delivery.set_result(RecordMetadata(self.topic, self.partition, place, self.offset, None, None))

    def fail(self, error: Exception) -> None:
        self.delivery.set_exception(error)


class Producer:
    """Takes records and leaves their deliveries to the test; `refuses` are not taken at all."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.sent: list[Sent] = []
        self.refuses: Callable[[str, bytes | None], bool] = lambda topic, value: False

    async def send(
        self, topic: str, key: Any, value: Any, partition: int, timestamp: None, headers: Any
    ) -> asyncio.Future[RecordMetadata]:
        if self.refuses(topic, value):
            raise ProducerSendError("too large") from MessageSizeTooLargeError()
        self.journal.append(("sent", topic))
        delivery = asyncio.get_running_loop().create_future()
        record = Sent(topic, key, value, headers, len(self.sent), delivery, partition)
        self.sent.append(record)
        return record.delivery

    def open(self, topic: str | None = None) -> list[Sent]:
        return [record for record in self.sent if not record.delivery.done() and topic in (None, record.topic)]

    def to(self, topic: str) -> list[Sent]:
        return [record for record in self.sent if record.topic == topic]


class Consumer:
    """What the agent needs of one: it commits what was acknowledged, unless it is told not to."""

    def __init__(self, app: faust.App, journal: Journal) -> None:
        self.app, self.journal = app, journal
        self.unacked = self._unacked_messages = set[ConsumerMessage]()  # where streams look
        self.assigned = {PLACE, ELSEWHERE}
        self.acked = -1
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.commits_nothing = self.refuses = False

    def assignment(self) -> set[TP]:
        return self.assigned

    def ack(self, message: ConsumerMessage) -> bool:
        self.journal.append(("acked", message.offset))
        self.acked = message.offset
        return True

    async def commit(self, places: set[TP]) -> bool:
        await self.may_commit.wait()
        self.journal.append(("commit", self.acked + 1))
        if not self.commits_nothing:
            self.app.monitor.on_tp_commit(dict.fromkeys(places, self.acked + 1))
        return not (self.commits_nothing or self.refuses)


class Stage:
    """An agent at work, and everything around it."""

    def __init__(self, steps: Pipeline | None, settings: Settings) -> None:
        self.journal: Journal = []
        self.app = faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable)
        self.app.producer = self.producer = Producer(self.journal)
        self.app.consumer = self.consumer = Consumer(self.app, self.journal)
        self.app.flow_control.resume()
        self.table: HistoryTable = self.app.Table("histories", key_type=bytes, value_type=bytes, partitions=1)
        self.channel = self.app.channel()
        self.reports: list[BatchReport] = []
        self.pipeline = steps or pipeline()
        self.agent = PredictionAgent(self.app, settings, self.pipeline, self.table, self.reports.append)
        self._handed_over: dict[int, int] = {}  # the last offset, by partition

    async def hand_over(self, *records: FakeRecord, follows: int | None = None, generation: int = 0) -> None:
        """A chunk arrives, fetched so many generations of the group ago."""
        chunk = Chunk(records)
        chunk.follows = self._handed_over.get(records[0].partition) if follows is None else follows
        self._handed_over[records[0].partition] = last = records[-1].offset
        tp = TP("user-events", records[0].partition)
        message = ConsumerMessage("user-events", tp.partition, last, 0.0, 0, (), None, chunk, None, tp=tp)
        message.generation_id = self.app.consumer_generation_id - generation
        await self.channel.put(self.app.create_event(None, chunk, {}, message))

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

    async def failure(self) -> BaseException:
        """The one error that ends the agent."""
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


def reason_of(letter: Sent) -> str:
    return dict(letter.headers or [])["dlq-reason"].decode()


# Acknowledged only when everything is delivered


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_nothing_is_acknowledged_before_the_last_delivery(order: Sequence[int]) -> None:
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0), NO_JSON)
        await stage.until(lambda: len(stage.producer.sent) == 2)
        first = list(stage.producer.sent)
        assert {record.topic for record in first} == {PREDICTIONS, CHANGELOG}
        for number in order:
            await stage.rest()
            assert not stage.journal_of("acked", "commit")
            first[number].deliver()
        await stage.until(lambda: stage.producer.to(LETTERS))
        await stage.rest()
        assert not stage.journal_of("acked", "commit")
        assert stage.table.read(b"u") is None, "the store would be ahead of what may still fail"
        stage.producer.to(LETTERS)[0].deliver()
        await stage.until(lambda: stage.reports)
        assert stage.journal_of("acked", "commit") == [("acked", 1), ("commit", 2)]
        assert stage.table.read(b"u") == stage.producer.to(CHANGELOG)[0].value


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


async def test_a_producer_that_takes_no_more_ends_the_agent() -> None:
    async with on_stage() as stage:

        async def send(*_: Any) -> None:
            raise ProducerSendError("closed") from KafkaTimeoutError()

        stage.producer.send = send  # type: ignore[method-assign,assignment]
        await stage.hand_over(event_record("u", 0))
        assert isinstance(await stage.failure(), ProducerSendError)
        assert not stage.journal


async def test_a_model_that_answers_nothing_ends_the_agent_and_rejects_nothing() -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("no device")

    async with on_stage(pipeline(predictor=Echo(answer=broken))) as stage:
        await stage.hand_over(event_record("u", 0))
        assert isinstance(await stage.failure(), EngineFailed)
        assert not stage.journal


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


# Too large for the broker: found out when it is sent, or when the broker answers


@pytest.mark.parametrize("found_out", ["sending", "answered"])
async def test_a_prediction_too_large_becomes_a_dead_letter_that_counts_once(found_out: str) -> None:
    async with on_stage() as stage:
        records = [event_record("u", 0), event_record("v", 1)]
        large = b'"user-events-0-0"'
        if found_out == "sending":
            stage.producer.refuses = lambda topic, value: topic == PREDICTIONS and large in (value or b"")
        await stage.hand_over(*records)
        await stage.until(lambda: len(stage.producer.to(CHANGELOG)) == 2)
        if found_out == "answered":
            (sent,) = [record for record in stage.producer.to(PREDICTIONS) if large in (record.value or b"")]
            sent.fail(MessageSizeTooLargeError())
        await stage.deliver_all()
        (letter,) = stage.producer.to(LETTERS)
        assert (letter.key, letter.value, reason_of(letter)) == (b"u", records[0].value, "emit")
        (report,) = stage.reports
        assert (report.records, report.predictions, report.dead_letters) == (2, 1, {"emit": 1})
        assert stage.table.read(b"u") is not None, "the event happened all the same"


@pytest.mark.parametrize("found_out", ["sending", "answered"])
async def test_a_dead_letter_too_large_goes_without_its_value(found_out: str) -> None:
    async with on_stage() as stage:
        if found_out == "sending":
            stage.producer.refuses = lambda topic, value: topic == LETTERS and value == NO_JSON.value
        await stage.hand_over(NO_JSON)
        if found_out == "answered":
            await stage.until(lambda: stage.producer.to(LETTERS))
            stage.producer.to(LETTERS)[0].fail(MessageSizeTooLargeError())
        await stage.deliver_all()
        letter = stage.producer.to(LETTERS)[-1]
        assert (letter.key, letter.value, reason_of(letter)) == (b"u", None, "undecodable")
        assert dict(letter.headers or [])["dlq-value-omitted"] == b"1"
        assert stage.reports[0].dead_letters == {"undecodable": 1}


async def test_a_dead_letter_refused_even_then_ends_the_agent() -> None:
    async with on_stage() as stage:
        stage.producer.refuses = lambda topic, _: topic == LETTERS
        await stage.hand_over(NO_JSON)
        error = await stage.failure()
        assert isinstance(error, ProducerSendError)
        assert "even without its value" in str(error)
        assert not stage.journal_of("acked", "commit")


# Some in flight, some prepared


async def test_chunks_of_different_partitions_go_to_the_device_together() -> None:
    model = Echo()
    async with on_stage(pipeline(predictor=model), Settings(partitions=2, chunks_prepared=4)) as stage:
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 0))
        await stage.until(lambda: len(stage.producer.sent) == 2)  # the first is in flight; now two more get ready
        await stage.hand_over(event_record("v", 1))
        await stage.hand_over(event_record("w", 7)._replace(partition=1))
        await stage.hand_over(event_record("x", 2))
        await stage.rest()
        stage.consumer.may_commit.set()
        await stage.deliver_all(chunks=4)
    assert model.calls == [1, 2, 1], "the one behind is of a partition that is under way already"
    assert [(sent.key, sent.partition) for sent in stage.producer.to(CHANGELOG)] == [
        (b"u", 0), (b"v", 0), (b"w", 1), (b"x", 0),
    ]  # fmt: skip
    assert [report.partition for report in stage.reports] == [0, 0, 1, 0]
    assert ["infer" in report.seconds for report in stage.reports] == [True, True, False, True], "counted once"


async def test_the_next_chunk_is_prepared_meanwhile_and_sent_after_the_commit() -> None:
    async with on_stage() as stage:
        stage.consumer.may_commit.clear()
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("v", 1))
        await stage.hand_over(event_record("w", 2))
        await stage.hand_over(event_record("x", 3))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        await stage.rest()
        assert stage.pipeline.cache.get("v", 0).last_offset == 1, "the second is decoded and folded"
        assert stage.pipeline.cache.get("w", 0).last_offset == 2, "the third as well, and waits to be put there"
        assert stage.pipeline.cache.get("x", 0).last_offset == -1, "the fourth waits its turn"

        for record in stage.producer.open():
            record.deliver()
        await stage.until(lambda: stage.consumer.acked == 0)
        await stage.rest()
        assert len(stage.producer.sent) == 2, "the first is delivered, and not committed yet"

        stage.consumer.may_commit.set()
        await stage.deliver_all(chunks=4)
        a_chunk = [("sent", PREDICTIONS), ("sent", CHANGELOG)]
        assert stage.journal == [
            *a_chunk, ("acked", 0), ("commit", 1),
            *a_chunk, ("acked", 1), ("commit", 2),
            *a_chunk, ("acked", 2), ("commit", 3),
            *a_chunk, ("acked", 3), ("commit", 4),
        ]  # fmt: skip


async def test_a_failure_throws_the_prepared_chunk_away() -> None:
    async with on_stage() as stage:
        await stage.hand_over(event_record("u", 0))
        await stage.hand_over(event_record("v", 1))
        await stage.until(lambda: len(stage.producer.sent) == 2)
        prediction, change = stage.producer.sent
        prediction.fail(KafkaTimeoutError())
        change.deliver()
        await stage.failure()
        assert {record.key for record in stage.producer.sent} == {b"u"}


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


async def test_a_partition_that_went_elsewhere_is_committed_there() -> None:
    async with on_stage() as stage:
        stage.consumer.commits_nothing, stage.consumer.assigned = True, set()
        await stage.hand_over(event_record("u", 0))
        await stage.deliver_all()
        assert stage.journal_of("commit") == [("commit", 1)]


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
