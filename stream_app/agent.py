"""The life of a batch, as seven numbered steps.

1. Intake    Faust hands over one chunk of records, all of one partition            (`intake.py`)
2. Decode    each record becomes an event, or a dead letter with a reason            (`events.py`)
3. Fold      events go into their users' histories                                   (`history.py`)
4. Infer     all windows of the chunks go to the model together, on the device thread (`model/engine.py`)
5. Score     each event is scored against what was expected of its user              (`scoring.py`)
6. Emit      predictions, changelog and dead letters are produced; each delivery is awaited
7. Ack       only then is the chunk acknowledged, and its offset committed

Four tasks share the steps, so that each overlaps with the others: 1 to 3, then 4, then 5 with the encoding of what is left
behind, then 6; and 7 overlaps with the next 6 where that does no harm. All that waits for the device goes there together,
one chunk of each partition. Queues between them are short, and nothing is fetched while something waits, for the device or
to be delivered: a slow device or a slow broker stops the intake, and what comes meanwhile makes larger chunks. A step that fails ends the
worker, and the chunks come again; the fold is idempotent, and a prediction's id is its record's place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, TypeVar, cast

import faust
from faust.types import TP, EventT, StreamT

from stream_app.chunk_states import Answered, Inferred, Prepared, TakenUp
from stream_app.dead_letters import without_value
from stream_app.events import Record, Rejected
from stream_app.intake import Chunk, ChunkOrder
from stream_app.observations import BatchReport, Observer
from stream_app.outgoing import Outgoing
from stream_app.pipeline import Batch, Pipeline, Predictor
from stream_app.predictions import Forecast, Message
from stream_app.producing import Deliveries
from stream_app.settings import Settings
from stream_app.tables import HistoryTable
from stream_app.turns import short_turns

log = logging.getLogger("nextmove")

COMMIT_ATTEMPTS = 20
TOGETHER_IN_WORK = 2  # so often may chunks that were on the device together be in steps 4 to 6
AT_A_STRETCH = 256  # events that are concluded before others have their turn, about 3 ms of work
RESTORED = 16  # users whose states are computed together in idle time: so long a chunk may have to wait
MOVING_S = 0.1  # how often somebody who waits for the device looks whether partitions move


Result = TypeVar("Result")


class CommitFailed(Exception):
    """The offset of a delivered chunk could not be committed, though the partition is still ours."""


class DeviceHangs(Exception):
    """The device does not answer any more; only another process could use it again."""


class Refused(Exception):
    """The broker refuses a record that there is no way to do without."""


class PredictionAgent:
    """Takes chunks through the seven steps."""

    def __init__(
        self, app: faust.App, settings: Settings, pipeline: Pipeline, table: HistoryTable, observe: Observer
    ) -> None:
        self._app = app
        self._settings = settings
        self._pipeline = pipeline
        self._table = table
        self._observe = observe
        self._order = ChunkOrder()
        self._settled: dict[TP, int] = {}  # by partition: no record below this offset comes again
        self._assignment = 0  # counts how often partitions moved
        self._deliveries = Deliveries(settings)
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._in_work: list[TakenUp] = []  # in steps 4 to 7
        self._leaving = asyncio.Event()
        self._handed_over: asyncio.Queue[Any] = asyncio.Queue()  # chunks that Faust has for us
        self._one_model = asyncio.Lock()  # held while chunks are in step 4
        self._concluded = asyncio.Event()  # none are between steps 4 and 5: one model answers and encodes them
        self._concluded.set()
        self._room = asyncio.Semaphore(TOGETHER_IN_WORK)
        self._idle = asyncio.Event()  # nothing waits for the device
        self._swapped = asyncio.Event()

    @property
    def working_s(self) -> float:
        """For how long the chunks in work have been so, in seconds; 0 when idle."""
        return monotonic() - self._in_work[0].at_s if self._in_work else 0.0

    async def wants_more(self) -> None:
        """Wait until all that was fetched is on its way out; what comes meanwhile makes one larger chunk."""
        while self._fetched > sum(taken.chunks for taken in self._in_work if taken.leaving):
            self._leaving.clear()
            with suppress(TimeoutError):  # Faust may have dropped some
                await asyncio.wait_for(self._leaving.wait(), MOVING_S)

    @property
    def _fetched(self) -> int:
        """Chunks that were fetched and are not acknowledged."""
        return self._handed_over.qsize() + len(self._app.consumer.unacked)

    async def swap(self, predictor: Predictor) -> None:
        """Another model answers from the next chunks on; those on the device keep theirs. Raises ValueError."""
        async with self._one_model:
            await self._concluded.wait()
            self._pipeline.swap(predictor)
        self._swapped.set()

    def forget_partitions(self) -> None:
        """Partitions have moved: nothing that was folded before may leave any more."""
        self._order.forget()
        self._settled.clear()
        self._assignment += 1

    async def run(self, stream: StreamT[list[Record]]) -> None:
        """Work on the chunks of `stream` until it ends; the first failure of any step ends it."""
        with short_turns():  # of the device's thread and the event loop's
            await self._run(stream)

    async def _run(self, stream: StreamT[list[Record]]) -> None:
        prepared: asyncio.Queue[Prepared] = asyncio.Queue(self._settings.chunks_prepared)
        inferred: asyncio.Queue[Inferred] = asyncio.Queue()  # `_room` bounds these two
        answered: asyncio.Queue[Answered] = asyncio.Queue()
        self._handed_over = cast(Any, stream.channel).queue
        events: AsyncIterable[EventT[list[Record]]] = stream.noack().events()  # type: ignore[attr-defined]  # Stream's
        async with self._deliveries, asyncio.TaskGroup() as tasks:
            following = [
                tasks.create_task(self._infer_all(prepared, inferred)),
                tasks.create_task(self._conclude_all(inferred, answered)),
                tasks.create_task(self._deliver_all(answered, tasks)),
                tasks.create_task(self._restore_all()),
            ]
            async for event in events:  # 1. Intake
                records = cast(Chunk, event.value)
                self._order.take(event.message.tp, records)
                await prepared.put(self._prepare(event, records))
                await asyncio.sleep(0)  # so that deliveries go on
            for task in following:
                task.cancel()

    def _prepare(self, event: EventT[list[Record]], records: Chunk) -> Prepared:
        report = BatchReport(event.message.partition, records=len(records))
        with report.stage("decode"):  # 2. Decode
            events, batch = self._pipeline.decode(records)
        with report.stage("fold"):  # 3. Fold
            # What lies before the first record that is read is committed
            settled = self._settled.setdefault(event.message.tp, records[0].offset)
            self._pipeline.fold(events, batch, settled)
        return Prepared(event, records, batch, report, self._assignment)

    async def _infer_all(self, prepared: asyncio.Queue[Prepared], inferred: asyncio.Queue[Inferred]) -> None:
        """Infer what is prepared, in order: all that waits, and a turn as a whole, but only one chunk of each partition."""
        held: list[Prepared] = []  # at most one, of a partition that has a chunk on the device
        while True:
            await self._room.acquire()  # whoever comes meanwhile goes together with who waits
            together = [held.pop() if held else await self._first(prepared)]
            while not held and len(together) <= self._settings.chunks_prepared:
                chunk = await _following(prepared, goes_on=together[-1].records.turn_goes_on)
                if chunk is None:
                    break
                (held if chunk.tp in [other.tp for other in together] else together).append(chunk)
            self._drop([chunk for chunk in together if not self._is_ours(chunk)])
            together = [chunk for chunk in together if self._is_ours(chunk)]  # whom those must not take along
            if not together or not self._may_go_on(together):
                self._room.release()
                continue
            taken_up = TakenUp(monotonic(), len(together))
            self._in_work.append(taken_up)
            async with self._one_model:
                with together[0].report.stage("infer"):  # 4. Infer
                    forecasts = await self._infer(together, lambda: [*held, *_all_of(prepared)])
                self._concluded.clear()
            inferred.put_nowait(Inferred(together, forecasts, taken_up))
            del forecasts  # they are large

    async def _first(self, prepared: asyncio.Queue[Prepared]) -> Prepared:
        """The next chunk; until there is one, the device has nothing to do."""
        self._idle.set()
        try:
            return await prepared.get()
        finally:
            self._idle.clear()

    async def _restore_all(self) -> None:
        """After a swap, while nothing waits for the device: states of the old model's users, a few at a time."""
        while True:
            await self._swapped.wait()
            await self._idle.wait()
            if self._moving:
                await asyncio.sleep(MOVING_S)
                continue
            async with self._one_model:
                try:
                    if not (pasts := self._pipeline.cold(RESTORED)):
                        self._swapped.clear()
                        continue
                    await self._on_device(partial(self._pipeline.restore, pasts), len(pasts), lambda: None)
                except DeviceHangs:
                    raise
                except Exception as error:  # noqa: BLE001  # whoever's states are missing gets them with the next event
                    self._swapped.clear()
                    log.warning("states are not computed in idle time: %s", " ".join(str(error).split())[:200])
            await asyncio.sleep(0)  # so that a chunk that has come is seen

    async def _infer(
        self, together: list[Prepared], waiting: Callable[[], list[Prepared]]
    ) -> list[Forecast | Rejected]:
        """What the model says of all windows, in order; its time is counted once, in the first chunk's report. Raises DeviceHangs."""
        windows = self._pipeline.windows(chunk.batch for chunk in together)

        def meanwhile() -> None:
            if self._moving:  # a rebalance does not wait for the device
                self._drop([*together, *waiting()])

        return await self._on_device(partial(self._pipeline.infer, windows), len(windows), meanwhile)

    async def _on_device(self, work: Callable[[], Result], windows: int, meanwhile: Callable[[], None]) -> Result:
        """What `work` gives on the device thread; `meanwhile` is called now and then until it does. Raises DeviceHangs."""
        answer = asyncio.get_running_loop().run_in_executor(self._device, work)
        deadline = monotonic() + self._settings.device_timeout_s
        while not answer.done():
            await asyncio.wait({answer}, timeout=MOVING_S)
            if monotonic() > deadline and not answer.done():
                within = f"{self._settings.device_timeout_s:g} s"
                raise DeviceHangs(f"the device has not answered {windows} windows within {within}")
            meanwhile()
        return answer.result()

    async def _conclude_all(self, inferred: asyncio.Queue[Inferred], answered: asyncio.Queue[Answered]) -> None:
        """Conclude what is inferred, in order, while the next chunks are on the device."""
        while True:
            answered.put_nowait(await self._conclude_group(await inferred.get()))
            if inferred.empty():
                self._concluded.set()

    async def _conclude_group(self, group: Inferred) -> Answered:
        chunks, forecasts = group.chunks, iter(group.forecasts)
        with chunks[0].report.stage("score"):  # 5. Score
            concluded = self._may_go_on(chunks)
            outgoing = [await self._conclude(chunk.batch, forecasts) for chunk in chunks] if concluded else []
        return Answered(chunks, outgoing, group.taken_up)

    async def _conclude(self, batch: Batch, forecasts: Iterator[Forecast | Rejected]) -> Outgoing:
        """What a chunk leaves behind, whose forecasts come next."""
        outgoing = Outgoing(self._deliveries.parcel(), self._deliveries.parcel())
        for part in batch.parts(AT_A_STRETCH):
            own = list(islice(forecasts, len(part.requests)))
            self._pipeline.score(part, own)
            outgoing.add(self._pipeline.conclude(part, own))
            del part
            await asyncio.sleep(0)  # so that deliveries go on
        return outgoing

    async def _deliver_all(self, answered: asyncio.Queue[Answered], tasks: asyncio.TaskGroup) -> None:
        """Deliver what is answered, in order; while the last is being committed where that does no harm."""
        last, commit = Answered.none(), None
        while True:
            group = await answered.get()
            if commit is not None and not group.may_follow(last):
                await asyncio.wait({commit})
            if not group.outgoing or not self._may_go_on(group.chunks):
                self._in_work.remove(group.taken_up)
                self._room.release()
                continue
            group.taken_up.leaving = True
            self._leaving.set()
            await self._emit(group)
            if commit is not None:
                await asyncio.wait({commit})  # one that fails ends the others, this one too
            self._room.release()
            last, commit = group, tasks.create_task(self._ack(group))

    @property
    def _moving(self) -> bool:
        """Partitions are moving, or the worker ends: nothing may begin that is not durable yet."""
        return not self._app.flow_control.is_active()

    def _may_go_on(self, chunks: list[Prepared]) -> bool:
        """Whether these chunks are still ours to finish; if not, they are dropped."""
        if self._moving:
            self._drop(chunks)
        return not self._moving and all(map(self._is_ours, chunks))

    def _is_ours(self, chunk: Prepared) -> bool:
        """Whether partitions have not moved since it was folded."""
        return chunk.assignment == self._assignment

    def _drop(self, chunks: list[Prepared]) -> None:
        """What has not begun to leave is for whoever reads these records next."""
        for chunk in chunks:
            self._app.consumer.unacked.discard(chunk.event.message)

    async def _emit(self, group: Answered) -> None:
        """Step 6: wait until the broker has all that goes out, a prediction that it refuses as a letter."""
        with group.chunks[0].report.stage("emit"):  # 6. Emit
            await asyncio.gather(
                *(
                    self._deliver(chunk.tp.partition, outgoing)
                    for chunk, outgoing in zip(group.chunks, group.outgoing, strict=True)
                )
            )

    async def _ack(self, group: Answered) -> None:
        """Step 7."""
        with group.chunks[0].report.stage("ack"):  # 7. Ack
            for chunk in group.chunks:
                chunk.event.ack()
            group.taken_up.chunks = 0
            offsets = {chunk.tp: chunk.event.message.offset + 1 for chunk in group.chunks}
            if await self._commit(offsets) and all(map(self._is_ours, group.chunks)):
                self._settled.update(offsets)
        self._pipeline.cache.trim()
        for chunk, outgoing in zip(group.chunks, group.outgoing, strict=True):
            self._observe(chunk.report.done(chunk.batch, outgoing, chunk.records))
        self._in_work.remove(group.taken_up)

    async def _deliver(self, partition: int, outgoing: Outgoing) -> None:
        settings, deliver = self._settings, self._deliveries.deliver
        answers, places = await asyncio.gather(
            deliver(settings.output_topic, partition, outgoing.packed_predictions),
            deliver(settings.changelog_topic, partition, outgoing.packed_states),
        )
        if None in answers:
            outgoing.refuse(answers)
        await self._deliver_letters(partition, [message for message, _ in outgoing.dead_letters])
        if None in places:
            raise Refused(f"{settings.changelog_topic} refuses a history for its size")
        self._table.apply(partition, outgoing.states, cast(list[int], places))

    async def _deliver_letters(self, partition: int, letters: Sequence[Message]) -> None:
        """A letter that the broker finds too large goes without its value, which stays where it came from."""
        topic, deliveries = self._settings.dead_letter_topic, self._deliveries
        places = await deliveries.deliver(topic, partition, deliveries.parcel(letters))
        large = [without_value(letter) for letter, place in zip(letters, places, strict=True) if place is None]
        if None in await deliveries.deliver(topic, partition, deliveries.parcel(large)):
            raise Refused(f"{topic} refuses a dead letter even without its value")

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; nothing of these partitions is acknowledged before it is done. Raises CommitFailed.

        False if partitions are moving: Faust commits what is acknowledged, and nothing else begins before.
        """
        consumer, committed = self._app.consumer, self._app.monitor.tp_committed_offsets
        left = dict(offsets)
        for attempt in range(COMMIT_ATTEMPTS):
            done = await consumer.commit(set(left))
            if not self._app.flow_control.is_active():
                return False
            noted = {tp for tp, offset in left.items() if committed.get(tp, -1) >= offset}
            if noted and not done:  # Faust notes a commit that the broker refused like any other
                break
            left = {tp: offset for tp, offset in left.items() if tp not in noted and tp in consumer.assignment()}
            if not left:
                return True
            await asyncio.sleep(0 if attempt < 2 else 0.05)  # what Faust had left over goes with the first attempt
        places = ", ".join(f"{offset} of {tp.topic}-{tp.partition}" for tp, offset in left.items())
        raise CommitFailed(f"offset {places} could not be committed")


async def _following(queue: asyncio.Queue[Prepared], *, goes_on: bool) -> Prepared | None:
    """What waits; if the turn goes on also what comes, but Faust may have dropped that."""
    if goes_on:
        with suppress(TimeoutError):
            async with asyncio.timeout(MOVING_S):
                return await queue.get()
    return None if queue.empty() else queue.get_nowait()


def _all_of(queue: asyncio.Queue[Prepared]) -> Iterator[Prepared]:
    while not queue.empty():
        yield queue.get_nowait()
