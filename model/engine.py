"""Inference: windows in, forecasts out.

A window is recomputed in full, in one pass with others of about its length; or, where it comes as a step from the window
before and states of its user are kept (`model.state_cache`), it costs one event. Both give the same answer, and it does not
depend on what else is in the batch, unless `few_in_int8` is wanted. One device; on a CPU a second thread may help
(`model.helper`). It knows nothing of topics or time of day; windows carry all there is to know.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import artifact
from model.answers import Answers, NotFinite, noted, seen_in, strangers
from model.artifact import Artifact, ArtifactError
from model.backbones import RECURRENT
from model.calibration import Calibration
from model.devices import choose_device, has_failed, scoring_precision
from model.features import Batch, Ints, encode, pad
from model.few import MOST as FEW
from model.forecast import Forecast, difference
from model.helper import SHARED, Helper, results
from model.hiding import NOBODY, Hidden
from model.network import NextMoveModel
from model.passes import spans
from model.precision import Precision
from model.slots import Kept
from model.state_cache import StateCache, strange_identity
from model.stepper import Tell
from model.told import Told, fetched
from model.vocabulary import Vocabulary
from model.window import Past, Steps, Window, WindowRule

log = logging.getLogger("nextmove")

__all__ = ["ArtifactError", "Engine", "Forecast", "NotFinite"]

LONG = 20_000  # items: a catalogue that is worth a lower precision and compiled code
BATCH = 128  # windows per pass: more would only leave the cache
GOLDEN_TOP_K = 10
GOLDEN_TOLERANCE = 1e-3  # between machines and devices; the same machine gives 1e-6
# The share by which a catalogue that is scored in fewer digits than the golden answers' may move what is listed: .007 was seen at most
GOLDEN_SPARED = 0.02


class Engine:
    """A loaded model that answers windows; use it from one thread."""

    def __init__(
        self,
        parts: Artifact,
        *,
        device: str = "auto",
        top_k: int = 10,
        threads: int | None = None,
        compiled: bool = False,
        helped: bool = False,
        few_in_int8: bool = False,
    ) -> None:
        """With `compiled`, what pays for it is compiled when it first runs; it needs `model.compiling.can_compile`.

        With `helped` a second thread, with as many of torch's, shares large batches on a CPU (`model.threads.shared` tells whether).
        With `few_in_int8` few windows at once are answered faster from a long catalogue, and a little differently than among many.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.manifest = parts.manifest
        self.version: str = parts.manifest.version
        self.window: WindowRule = parts.manifest.window
        self.behaviors: tuple[str, ...] = parts.vocabulary.behaviors.names
        self.goal: str = parts.vocabulary.goal
        self.popular_items: list[str] = parts.manifest.popular_items
        self.top_k = top_k
        self.vocabulary: Vocabulary = parts.vocabulary
        self.calibration: Calibration = parts.manifest.calibration or Calibration()
        self.hidden = Hidden()
        self.states: StateCache | None = None
        self._keeping: tuple[int, dict[str, Any]] | None = None  # what `keep_states` was given
        device = choose_device(device)
        self._helped, self._few_in_int8 = helped, few_in_int8
        self._spare: NextMoveModel | None = None if device == "cpu" else copy.deepcopy(parts.model)  # on the host
        self._fallbacks = 0
        self._install(parts.model, device, compiled=compiled)
        self._widths = sorted({width for width in (4, 8, 16, 32, 64, 128, 256) if width < self.window.events})

    def _install(self, model: NextMoveModel, device: str, *, compiled: bool) -> None:
        """From now on this model answers, on this device."""
        self.device, self.compiled = device, compiled
        self._helper = Helper() if self._helped and device == "cpu" else None
        self._model: NextMoveModel = model.to(device).eval()  # type: ignore[arg-type]  # a str is a device
        names, long = self.vocabulary, self.vocabulary.items.rows > LONG
        self.precision: Precision = scoring_precision(device, compiled) if long else "float32"  # of scoring
        how = {"compiled": compiled, "compiled_scoring": compiled and long, "few_in_int8": long and self._few_in_int8}
        self._answers = Answers(self._model, names, self.calibration, precision=self.precision, **how)
        self._tells: dict[int, Tell] = {}  # by the number of names listed

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str = "auto",
        top_k: int = 10,
        threads: int | None = None,
        compiled: bool = False,
        helped: bool = False,
        few_in_int8: bool = False,
    ) -> Engine:
        """A checked model directory as an engine; raises ArtifactError with one line that says what is wrong."""
        parts = artifact.load(Path(directory))
        how = {"compiled": compiled, "helped": helped, "few_in_int8": few_in_int8}
        engine = cls(parts, device=device, top_k=top_k, threads=threads, **how)
        engine.check_golden()
        return engine

    @torch.inference_mode()
    def item_scores(self, windows: Sequence[Window]) -> Tensor:
        """The probability of every known item as the next one, in the vocabulary's order, [windows, items]."""
        columns = encode(windows, self.vocabulary)
        lengths = np.minimum(columns.lengths, self.window.events)
        starts = columns.starts + columns.lengths - lengths
        batch = pad(columns, starts, lengths, int(lengths.max())).to(torch.device(self.device))
        return self._answers.item_probabilities(self._model(batch, last=True), seen_in(batch))

    def check_golden(self) -> None:
        """Raises ArtifactError when the model no longer gives the answers that it was published with."""
        golden = self.manifest.golden
        try:
            answers = self._answer([one.window for one in golden], GOLDEN_TOP_K)
        except NotFinite:
            raise ArtifactError(f"model {self.version} answers with numbers that are not finite") from None
        spared = 0 if self.precision == "float32" else GOLDEN_SPARED
        pairs = zip((one.forecast for one in golden), answers, strict=True)
        worst = max((difference(*pair, spared=spared) for pair in pairs), default=0)
        if not worst <= GOLDEN_TOLERANCE:
            raise ArtifactError(
                f"model {self.version} does not reproduce its golden answers on {self.device}: off by {worst:.2g}"
            )

    @property
    def helped(self) -> bool:
        """Whether a second thread shares large batches."""
        return self._helper is not None

    @property
    def kept(self) -> Kept:
        """What became of the states that are kept; may be asked from any thread."""
        states = self.states
        if states is None:
            return Kept(device_fallbacks=self._fallbacks)
        counts = states.counts
        held = (states.users, states.bytes, states.stepper.compiled)
        return Kept(counts.hits, counts.refills, counts.evictions, *held, counts.restored, self._fallbacks)

    def warm(self) -> None:
        """Predict once in each width of batch, and for one, few and many windows, so that no batch is the first of its kind.

        Raises NotFinite.
        """
        name = self.behaviors[0]
        widths = (*self._widths, self.window.events)
        made_up = [Window([None] * width, [name] * width, [None] * width, [0] * width) for width in widths]
        self.predict(made_up)
        for count in (FEW, FEW + 1):
            self.predict(made_up[:1] * count)

    def hide(self, hidden: Hidden) -> int:
        """From the next batch on these items are not listed, instead of those before; how many of the banned are unknown.

        May be called from any thread.
        """
        self.hidden = hidden
        return sum(name not in self.vocabulary.items.index for name in hidden.banned)

    def predict(self, windows: Sequence[Window], top_k: int | None = None) -> list[Forecast]:
        """One forecast per window, in order. Longer windows than the rule are cut; an empty one is a ValueError.

        Raises NotFinite. A device that fails, or has no memory for even one window, is given up for the CPU.
        """
        try:
            return self._predict(windows, top_k or self.top_k)
        except Exception as error:
            short = isinstance(error, torch.OutOfMemoryError) and len(windows) == 1
            if self._spare is None or not (short or has_failed(error)):
                raise
            reason = " ".join(str(error).split())[:200]
        log.warning("device %s failed, model %s goes on on the CPU: %s", self.device, self.version, reason)
        self._fall_back(self._spare)
        return self._predict(windows, top_k or self.top_k)

    def _fall_back(self, spare: NextMoveModel) -> None:
        """To the CPU, for good; nothing is read from the device any more, so states are computed anew."""
        self._spare, self.states = None, None
        self._install(spare, "cpu", compiled=False)
        self._fallbacks += 1
        if self._keeping is not None:
            limit_bytes, options = self._keeping
            self.keep_states(limit_bytes, **options)

    def _predict(self, windows: Sequence[Window], k: int) -> list[Forecast]:
        self._hide()
        if self.states is not None and isinstance(windows, Steps):
            return self._follow(self.states, windows, k)
        return self._answer(windows, k)

    def _hide(self) -> None:
        """What was asked for last is what is hidden."""
        if self._answers.hidden is self.hidden:
            return
        if self._answers.hidden == self.hidden:
            self._answers.hidden = self.hidden  # the same, asked for again
            return
        self._answers.hide(self.hidden)
        self._tells.clear()

    def recent_users(self) -> list[str]:
        """Whose states are kept, those used last first."""
        return [] if self.states is None else self.states.recent_users

    def restore(self, pasts: Sequence[Past]) -> bool:
        """Compute states of users before their next events, where there is room; whether there is room for more."""
        return self.states is not None and self.states.restore(pasts)

    @property
    def _strangers_matter(self) -> bool:
        """Whether names that are not to be listed, and that the vocabulary does not know, have compiled programs of their own."""
        long = self.vocabulary.items.rows > LONG
        return self.compiled and self.device == "cpu" and long and self._model.config.copy and not self.hidden.seen

    def keep_states(self, limit_bytes: int, *, bans_change: bool = False, **options: Any) -> None:
        """From now on states of users are kept, within a limit of memory; options as in `StateCache`. Raises ValueError.

        With `bans_change` lists of banned items may come and go later, and what any of them needs is compiled now.
        A window rule whose full windows move with every event has no use for them, nor has a backbone that looks both ways.
        """
        self._keeping = limit_bytes, {"bans_change": bans_change, **options}
        if self.window.stride > 1 and self._model.config.backbone in ("nextmove", *RECURRENT):
            self.states = StateCache(
                self._model,
                self.vocabulary,
                self.window,
                limit_bytes,
                device=self.device,
                helper=self._helper,
                **{"compile_steps": self.compiled, **options},
            )
            self._hide()
            if bans_change and self._strangers_matter:  # the next list may have some, or none any more
                other = [] if self._answers.strangers else [NOBODY]
                self.states.warm(self._teller(self.top_k, self._identities(other)), self._finish)
            self.states.warm(self._tell(self.top_k), self._finish)

    @torch.inference_mode()
    def _answer(self, windows: Sequence[Window], k: int) -> list[Forecast]:
        windows = list(windows)  # whoever asks may cut them only now
        columns = encode(windows, self.vocabulary)
        if len(windows) and columns.lengths.min() < 1:
            raise ValueError("a window needs at least one event")
        lengths = np.minimum(columns.lengths, self.window.events)
        starts = columns.starts + columns.lengths - lengths
        unwanted, rows = None, self.vocabulary.items.rows
        if self._answers.strangers:
            named = enumerate(columns.unknown_items, rows)
            unwanted = self._identities(identity for identity, name in named if name in self._answers.strangers)
        items = strangers(columns.unknown_items, self.vocabulary.items.rows)
        categories = strangers(columns.unknown_categories, self.vocabulary.categories.rows)
        answers: dict[int, Forecast] = {}
        parts = list(self._parts(lengths))

        def work(some: Ints, width: int) -> Callable[[], Told]:
            return partial(self._told, pad(columns, starts[some], lengths[some], width), k, unwanted)

        works = ((some, work(some, width)) for some, width in parts)
        with closing(results(works, helper=self._helper if len(parts) > 1 else None)) as found:
            for some, told in found:
                answers.update(zip(some.tolist(), self._answers.forecasts(told, items, categories), strict=True))
        return [answers[position] for position in range(len(windows))]

    def _parts(self, lengths: Ints) -> Iterator[tuple[Ints, int]]:
        """Which windows go together, and the width of their batch: BATCH at most of about a length, or half of all that are shared."""
        shared = self._helper is not None and len(lengths) >= SHARED
        most = min(BATCH, (len(lengths) + 1) // 2) if shared else BATCH
        widths = np.array([*self._widths, self.window.events])
        bucket = np.searchsorted(widths, lengths)
        for number, width in enumerate(widths.tolist()):
            members = np.flatnonzero(bucket == number)
            for begin in range(0, len(members), most):
                yield members[begin : begin + most], width

    def _told(self, batch: Batch, k: int, unwanted: Tensor | None) -> Told:
        """What is said about one rectangular batch."""
        batch = batch.to(torch.device(self.device))
        return fetched(self._answers.tell(self._model(batch, last=True), seen_in(batch), k, unwanted))

    def _identities(self, found: Iterable[int]) -> Tensor:
        return torch.tensor(sorted(found), dtype=torch.int64, device=self.device)

    def _finish(self, told: Told, rows: int) -> list[Forecast]:
        """Forecasts of events without a name."""
        names = noted([{}] * rows)
        return self._answers.forecasts(told, names, names)

    def _tell(self, k: int) -> Tell:
        """The same one until something else is hidden: a device may have recorded what it does."""
        if k not in self._tells:
            items = self.vocabulary.items
            strange = self._answers.strangers
            self._tells[k] = self._teller(k, self._identities(strange_identity(name, items) for name in strange))
        return self._tells[k]

    def _teller(self, k: int, unwanted: Tensor) -> Tell:
        """Lists k items; those beyond the vocabulary that are not to be listed are `unwanted`, int64 [S], rising."""
        answers = self._answers
        return Tell(
            of=lambda heads, seen: answers.tell(heads, seen, k, unwanted),
            asked=lambda rows: answers.asked(rows, k, unwanted),
        )

    @torch.inference_mode()
    def _follow(self, states: StateCache, windows: Steps, k: int) -> list[Forecast]:
        """Steps go on from what is kept, one event of a user at a time; what is no step is recomputed in full."""
        steps = [windows.step(position) for position in range(len(windows))]
        answers: dict[int, Forecast] = {}
        if None in steps:
            whole = [position for position, step in enumerate(steps) if step is None]
            answers.update(zip(whole, self._answer([windows[position] for position in whole], k), strict=True))
        for some in spans(steps, states.room):
            chosen = [step for position in some if (step := steps[position]) is not None]
            with closing(
                states.advance(chosen, picked(windows, some), self._tell(k))
            ) as parts:  # at once, if this raises
                for members, told, strange in parts:
                    names = noted(strange)
                    found = self._answers.forecasts(told, names, names)
                    answers.update(zip((some[number] for number in members), found, strict=True))
        return [answers[position] for position in range(len(windows))]


def picked(windows: Sequence[Window] | Steps, some: Sequence[int]) -> Callable[[int], Window]:
    """The n-th window of some, cut when somebody looks at it."""
    return lambda number: windows[some[number]]
