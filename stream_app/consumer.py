"""Faust's consumer, mended in two places, and asked for more only when somebody waits for it; importing this is enough.

Whenever partitions have moved, Faust 0.15 throws away what it fetches until it has recovered, and then seeks. Two things
keep it from fetching all of that again:

The fetch. It is given the set of partitions that are active, and sees that change while it waits: at the end of recovery
the set becomes empty, which means *all* of them to aiokafka, those that are not readable yet included.

The seek. It leaves a partition where it is if nothing is committed for it, and so behind what was thrown away.

And asked whenever it can hold more, it would fetch a few records at a time, and every chunk of them has its turn on the
device, its deliveries and its commit. Asked when its last chunks begin to be delivered, it brings all that has come since: really
since, for aiokafka would fetch ahead, and keep until then what had come when it was asked the last time. So partitions are
paused while nobody asks. And where little comes, it waits for the rest of an interval: a fetch costs as much with one
record as with hundreds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Fetches what was asked for, and comes back to the beginning of what is not committed yet."""

    _fetched_s = 0.0  # monotonic: when the last fetch ended

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek each partition to its committed offset; one of a stream without any, to its beginning."""
        offsets = await super().seek_to_committed()
        changelogs = self.app.tables.changelog_topics  # their places are for recovery to choose
        uncommitted = [tp for tp, offset in offsets.items() if not offset and tp.topic not in changelogs]
        if uncommitted:
            await self.call_thread(self._ensure_consumer().seek_to_beginning, *uncommitted)
        return offsets

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109  # Faust's
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        active = set(active_partitions)  # as it is now
        if not active:
            return {}
        if not self.app.tables.changelog_topics.isdisjoint(tp.topic for tp in active):  # recovery reads ahead
            consumer.resume(*consumer.assignment())  # a fetch from before partitions moved may have paused them
            return await super()._fetch_records(consumer, active, timeout, max_records)
        await asyncio.sleep(self._fetched_s + self.app.fetch_interval_s - monotonic())  # type: ignore[attr-defined]  # `worker.App`
        consumer.pause(*consumer.assignment())  # changelogs as well: a fetch of theirs alone would hold ours up
        consumer.resume(*(tp for tp in consumer.assignment() if tp in active))
        try:
            return await super()._fetch_records(consumer, active, timeout, max_records)
        finally:
            consumer.pause(*(tp for tp in consumer.assignment() if tp in active))
            self._fetched_s = monotonic()


class Consumer(driver.Consumer):
    """Waits until the app wants more."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109  # Faust's
        await self.app.before_fetch()  # type: ignore[attr-defined]  # `worker.App` has it
        return await super()._getmany(active_partitions, timeout)


driver.Transport.Consumer = Consumer  # Faust has no setting for it
