"""The steps of a batch that need no broker: decode, fold, infer, score, conclude.

The worker (`agent.py`) and the inline replay (`replay.py`) run these same steps; only where records come from and where
messages go differs. Knows nothing of Faust, of torch or of clocks; a model is whatever has `predict`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol, overload, runtime_checkable
from zlib import crc32

from model.window import Past, Step, Window, WindowRule
from stream_app import history as histories
from stream_app.dead_letters import dead_letter
from stream_app.events import Erasure, Event, EventDecoder, Reason, Record, Rejected
from stream_app.expiry import Expiry
from stream_app.history import HistoryRule, Outcome
from stream_app.history_cache import HistoryCache
from stream_app.history_layout import History
from stream_app.predictions import Forecast, Message, PredictionEncoder, prediction_id
from stream_app.scoring import K, LiveScores

FOLDED, REPEAT, TOO_LATE = Outcome.FOLDED, Outcome.REPEAT, Outcome.TOO_LATE  # looked up once
new = tuple.__new__  # makes a named tuple at half the cost of calling it


class Predictor(Protocol):
    """What the pipeline needs of a model; `model.engine.Engine` has it."""

    @property
    def version(self) -> str:
        """Content hash of the model."""

    @property
    def window(self) -> WindowRule:
        """The window rule that the model was trained with."""

    @property
    def behaviors(self) -> Sequence[str]:
        """The order of `Forecast.next_behaviors`."""

    def predict(self, windows: Sequence[Window]) -> Sequence[Forecast]:
        """One forecast per window, of finite numbers; raises where there is none."""


@runtime_checkable
class KeepsStates(Protocol):
    """A model that keeps what it has computed of users, for their next events."""

    def recent_users(self) -> Sequence[str]:
        """Whose states it keeps, those used last first."""

    def restore(self, pasts: Sequence[Past]) -> bool:
        """Compute states before the next events; whether there is room for more. Runs on the device thread."""


class EngineFailed(Exception):
    """The model answers nothing at all any more: no record is to blame, and none may be given up."""


class Request(NamedTuple):
    """One event that asks for a prediction; the window is that of `history` as of the record's offset."""

    record: Record
    event: Event
    before: History
    history: History
    outcome: Outcome
    length: int  # events of the window: found when the history is at hand


class Windows(Sequence[Window]):
    """The windows of requests, each cut when the model looks at it: one that keeps its own cache seldom does."""

    def __init__(self, requests: Sequence[Request], rule: WindowRule) -> None:
        self._requests = requests
        self._rule = rule

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, position: int) -> Window: ...
    @overload
    def __getitem__(self, position: slice) -> Windows: ...
    def __getitem__(self, position: int | slice) -> Window | Windows:
        if isinstance(position, slice):
            return Windows(self._requests[position], self._rule)
        request = self._requests[position]
        return histories.window(request.history, request.record.offset, self._rule)

    def step(self, position: int) -> Step | None:
        """See `model.window.Steps`; None for an event that is late or came again."""
        record, event, before, history, outcome, length = self._requests[position]
        offset = record.offset
        if outcome is not FOLDED or history.newest_offset != offset:
            return None
        columns = (
            event.user_id,
            record.partition,
            before.last_offset if before.length else -1,
            offset,
            history.dropped + history.length - length,
            length,
            event.item_id or None,
            event.behavior,
            event.category or None,
            event.time_ms,
        )
        return new(Step, columns)


@dataclass(slots=True)
class Batch:
    """Records on their way to predictions; after `fold`, ready for the device."""

    requests: list[Request] = field(default_factory=list)
    rejects: list[tuple[Record, Rejected]] = field(default_factory=list)
    erasures: list[tuple[Record, str]] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)  # users who were idle
    changed: dict[str, History | None] = field(default_factory=dict)  # by user; None: erased, or expired
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    times_ms: list[int] = field(default_factory=list)  # of the requests' events
    scored_share: float = 1.0  # of the users whose predictions are scored

    def parts(self, most: int) -> Iterator[Batch]:
        """The same batch in parts of at most so many requests and changes, to be scored and concluded one after the other.

        It gives the requests up: what is large in them goes part by part, which is cheaper than much later and all at once.
        """
        changes = iter(self.changed.items())
        rest = replace(self, requests=[], changed={})  # goes with the first part
        for _ in range(0, max(1, len(self.requests), len(self.changed)), most):
            requests, self.requests = self.requests[:most], self.requests[most:]
            yield replace(rest, requests=requests, changed=dict(islice(changes, most)))
            del requests
            rest = Batch(scored_share=self.scored_share)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a batch leaves behind; to be delivered before it is acknowledged."""

    predictions: list[tuple[Record, Message]]  # tombstones of erased users included
    dead_letters: list[tuple[Message, Reason]]
    states: list[tuple[bytes, bytes | None]]  # (user, stored history); None: erased, or expired
    fallbacks: Counter[str] = field(default_factory=Counter)


class Pipeline:
    """Decode, fold, infer, score and conclude, for records that arrive in offset order per partition."""

    def __init__(
        self,
        predictor: Predictor,
        decoder: EventDecoder,
        cache: HistoryCache,
        *,
        source: str,
        lateness_ms: int = 3_600_000,
        expiry: Expiry | None = None,
        most_scored: float = math.inf,
    ) -> None:
        """`most_scored`: about so many events of a batch are scored; of larger batches those of a sample of users."""
        self.scores = LiveScores(predictor.behaviors)
        self.rule = HistoryRule(predictor.window, lateness_ms)
        self.cache = cache
        self._predictor = predictor
        self._decoder = decoder
        self._source = source
        self._encoder = PredictionEncoder(predictor.behaviors, predictor.version, source)
        self._expiry = expiry
        self._most_scored = most_scored
        self._cold: deque[str] = deque()  # users whose states a model before kept, and the one at work may not

    @property
    def unknown_fields(self) -> int:
        """Records so far that carried fields outside the contract."""
        return self._decoder.unknown_fields

    def swap(self, predictor: Predictor) -> None:
        """From now on another model answers. To be called between two batches: none is inferred and not yet concluded.

        Raises ValueError for one with another window rule, since histories are kept by that. Of whom the old one kept states is
        for `cold` to tell.
        """
        if predictor.window != self.rule.window:
            raise ValueError(f"model {predictor.version} has another window rule")
        self._encoder = PredictionEncoder(predictor.behaviors, predictor.version, self._source)
        self.scores.reorder(predictor.behaviors)
        if isinstance(self._predictor, KeepsStates) and isinstance(predictor, KeepsStates):
            known = dict.fromkeys([*self._predictor.recent_users(), *self._cold])
            self._cold = deque(known)
        self._predictor = predictor

    def cold(self, most: int) -> list[Past]:
        """The next users of whom a model before kept states, those used last first, as they are now; none when there are no more."""
        found: list[Past] = []
        while self._cold and len(found) < most:
            user_id = self._cold.popleft()
            history = self.cache.peek(user_id)
            if history is not None and history.length:
                window = histories.window(history, history.last_offset, self.rule.window)
                start = history.dropped + history.length - len(window.items)
                found.append(Past(user_id, history.partition, history.last_offset, start, window))
        return found

    def restore(self, pasts: Sequence[Past]) -> None:
        """The model at work computes their states; when it has no more room, nobody is cold any more. Runs on the device thread."""
        predictor = self._predictor
        if not (isinstance(predictor, KeepsStates) and predictor.restore(pasts)):
            self._cold.clear()

    def forget(self) -> None:
        """Partitions are moving: what is known of their users may soon be somebody else's to change."""
        self.cache.clear()
        if self._expiry is not None:
            self._expiry.forget()

    def decode(self, records: Iterable[Record]) -> tuple[list[tuple[Record, Event | Erasure]], Batch]:
        """Each record becomes an event or a rejection; nothing stops the batch."""
        events, rejects = self._decoder.decode_all(records)
        return events, Batch(rejects=rejects)

    def fold(self, events: Sequence[tuple[Record, Event | Erasure]], batch: Batch, settled: int) -> Batch:
        """Each event goes into its user's history and asks for a prediction as of its own offset; idle users expire.

        No record of the partition below the offset `settled` comes again.
        """
        cache, rule, requests, changed, folded = self.cache, self.rule, batch.requests, batch.changed, 0
        fold, length = histories.fold, histories.window_length
        for record, event in events:
            if isinstance(event, Erasure):
                self._erase(record, event.user_id, batch)
                continue
            user_id = event.user_id
            before = cache.get(user_id, record.partition)
            offset = record.offset
            after, outcome = fold(before, event, offset, rule, settled)
            columns = (record, event, before, after, outcome, length(after, offset, rule.window))
            request = new(Request, columns)
            if outcome is FOLDED:
                folded += 1
                changed[user_id] = after
                cache.put(user_id, after)
                requests.append(request)
            else:
                self._take_back(request, batch)
        if folded:
            batch.outcomes[FOLDED] += folded
            batch.scored_share = min(1.0, self._most_scored / folded)
        batch.times_ms = [request.event.time_ms for request in requests]
        if self._expiry is not None:
            batch.expired = self._expiry.expired(events, self.cache.peek)
            for user_id in batch.expired:
                self._remove(user_id, batch)
        return batch

    def windows(self, batches: Iterable[Batch]) -> Windows:
        """The windows of all requests, in order."""
        return Windows([request for batch in batches for request in batch.requests], self.rule.window)

    def infer(self, windows: Sequence[Window]) -> list[Forecast | Rejected]:
        """A forecast per window; where the model fails on a window, a rejection. Raises EngineFailed.

        Runs on the device thread.
        """
        if not windows:
            return []
        forecasts = _isolate(self._predictor.predict, windows)
        if Rejected in map(type, forecasts):
            self._probe()
        return forecasts

    def score(self, batch: Batch, forecasts: Sequence[Forecast | Rejected]) -> None:
        """Each event is scored against what was expected of its user; then its own forecast is kept for the next.

        Only those of the users whose ids have the smallest hashes, `scored_share` of all: a uniform sample, and the same users
        again in other batches of that size.
        """
        scores = self.scores
        for user_id in (*batch.expired, *(erased for _, erased in batch.erasures)):
            scores.forget(user_id)
        below = batch.scored_share * 2**32
        for (record, event, before, _, outcome, _), forecast in zip(batch.requests, forecasts, strict=True):
            if crc32(event.user_id.encode()) >= below or outcome is not FOLDED or isinstance(forecast, Rejected):
                continue  # a record that came again was scored the first time
            scores.observe(event, before.last_offset, before, _repeat_rank)
            scores.expect(event.user_id, record.offset, forecast)

    def conclude(self, batch: Batch, forecasts: Sequence[Forecast | Rejected]) -> Outputs:
        """The messages and states of the batch, ready to be delivered."""
        rejects = list(batch.rejects)
        predictions: list[tuple[Record, Message]] = []
        fallbacks: Counter[str] = Counter()
        encode = self._encoder.encode
        for (record, event, _, _, _, length), forecast in zip(batch.requests, forecasts, strict=True):
            if isinstance(forecast, Rejected):
                rejects.append((record, forecast))
                continue
            id_ = prediction_id(record.topic, record.partition, record.offset)
            predictions.append((record, encode(id_, event, length, forecast)))
            if forecast.fallback is not None:
                fallbacks[forecast.fallback] += 1
        for record, user_id in batch.erasures:
            id_ = prediction_id(record.topic, record.partition, record.offset)
            predictions.append((record, self._encoder.erasure(user_id, id_)))
        letters = [(dead_letter(record, rejected), rejected.reason) for record, rejected in rejects]
        states = [
            (user.encode(), None if history is None else history.stored) for user, history in batch.changed.items()
        ]
        return Outputs(predictions, letters, states, fallbacks)

    def _take_back(self, request: Request, batch: Batch) -> None:
        """An event that has changed nothing: it came again, or too late."""
        record, event, before, history, outcome, _ = request
        batch.outcomes[outcome] += 1
        if outcome is TOO_LATE:
            behind = ((before.watermark_ms or 0) - event.time_ms) / 1000
            batch.rejects.append((record, Rejected(Reason.TOO_LATE, f"{behind:.0f} s behind the user's latest event")))
            return
        if outcome is not REPEAT:  # a record seen before is put again, so that the changelog surely has it
            batch.changed[event.user_id] = history
            self.cache.put(event.user_id, history)
        batch.requests.append(request)

    def _erase(self, record: Record, user_id: str, batch: Batch) -> None:
        self._remove(user_id, batch)
        batch.erasures.append((record, user_id))

    def _remove(self, user_id: str, batch: Batch) -> None:
        batch.changed[user_id] = None
        self.cache.put(user_id, None)

    def _probe(self) -> None:
        """Is it the records, or the model? A window that any model must answer tells."""
        plainest = Window([None], [self._predictor.behaviors[0]], [None], (0,))
        if isinstance(_isolate(self._predictor.predict, [plainest])[0], Rejected):
            raise EngineFailed("the model fails on every window, the plainest one included")


def _repeat_rank(event: Event, before: History) -> int | None:
    """The rank of the event's item among the user's own items before it, most recent first; None beyond the first K."""
    if event.item_id is None or event.item_id.encode() not in before.texts:
        return None
    if event.time_ms < (before.watermark_ms or 0):
        before = histories.until(before, event.time_ms)
    return histories.recency_rank(before, event.item_id, K)


def _isolate(
    predict: Callable[[Sequence[Window]], Sequence[Forecast]], windows: Sequence[Window]
) -> list[Forecast | Rejected]:
    """Predict; where that fails, halve until the windows that fail stand alone."""
    try:
        return _as_many(predict(windows), len(windows))
    except Exception as error:  # noqa: BLE001  # whatever a model raises is the model's, never the stream's
        if len(windows) == 1:
            return [Rejected(Reason.INFERENCE, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]
    half = len(windows) // 2
    return _isolate(predict, windows[:half]) + _isolate(predict, windows[half:])


def _as_many(forecasts: Sequence[Forecast], wanted: int) -> list[Forecast | Rejected]:
    if len(forecasts) != wanted:
        raise ValueError(f"{len(forecasts)} answers to {wanted} windows")
    return list(forecasts)
