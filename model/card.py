"""What a model says about itself, in words: the card in its directory, and the same in a report."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the manifest belongs to the directory that holds the card
    from model.artifact import Manifest
    from model.cleaning import CleaningReport

USE = (
    "To predict what a user of the same service does next, from the user's own recent events: ordering what is shown, "
    "preparing what is needed, judging how a session goes. Not for decisions about people, such as credit, insurance, work or health."
)
LIMITS = (
    "Probabilities describe the log it learned from; a service that changes needs a new model.",
    "Items that are not in the vocabulary can be predicted only while they are in the user's window.",
    "Times to the next event are learned from events that had a next one, so long absences are underestimated.",
    "Calibration was fitted before the last pass over the whole range, and is assumed to hold after it.",
    "Intervals speak of other users of the same days, not of other days.",
    "Whoever is rare in the log is predicted less well; no measure here looks at groups of people.",
)
LICENCE = (
    "of the data it learned from: not known to this program; ask whoever gave you the log before you pass the model on"
)


def moment(ms: int) -> str:
    """A time for people; the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms UTC"


def facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(what, its value), in the order of reading."""
    trained, window = manifest.training, manifest.window
    goal_h, churn_h = manifest.goal_horizon_ms / 3_600_000, manifest.churn_horizon_ms / 3_600_000
    yield (
        "what it is",
        "a network that predicts a user's next event "
        f"(backbone {trained.backbone}, preset {trained.preset}, seed {trained.seed})",
    )
    if trained.older is not None:
        yield "went on from", f"model {trained.older}"
    yield "learned from", f"{trained.events:,} events of {trained.users:,} users"
    yield "data range", f"{moment(trained.from_ms)} to {moment(trained.until_ms)}"
    if manifest.cleaning is not None:
        yield "cleaned of", manifest.cleaning.line() or "nothing"
    if (texts := manifest.described) is not None:
        met = f"{texts.unmet:,} of them with no event" if texts.unmet else "each with an event"
        yield "items", f"{texts.items:,} known by their texts ({texts.texts:,} distinct, {texts.encoder}), {met}"
    yield "epochs", f"{trained.epochs}"
    yield "behaviours", ", ".join(manifest.behaviors)
    yield "goal", f"{manifest.goal} within {goal_h:.3g} h"
    yield "churn", f"no event within {churn_h:.3g} h"
    fewest = window.events - window.stride + 1
    events = f"{window.events}" if window.stride == 1 else f"{fewest} to {window.events}"
    yield "window", f"the last {events} events, not older than {window.age_ms / 86_400_000:g} days"


def card(manifest: Manifest) -> str:
    """The model card as Markdown."""
    listed = "\n".join(f"- {what}: {value}" for what, value in facts(manifest))
    limits = "\n".join(f"- {limit}" for limit in LIMITS)
    parts = (
        f"# NextMove model\n\n{listed}",
        "## Measured on the last part of the training range\n\n" + "\n".join(_measured(manifest)),
        "\n".join(("## Calibration\n", *_calibrated(manifest))) if manifest.calibration else "",
        "\n".join(("## Cleaning\n", *_cleaned(manifest.cleaning))) if manifest.cleaning else "",
        f"## Intended use\n\n{USE}",
        f"## Limits\n\n{limits}",
        f"## Licence\n\n{LICENCE[0].upper()}{LICENCE[1:]}.",
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _measured(manifest: Manifest) -> Iterator[str]:
    """Losses, then every measure with its interval and the best baseline."""
    if not manifest.metrics and not manifest.compared:
        yield "Nothing was measured: no part of the range was kept for it."
        return
    yield from ("| measure | model | 95 % | best baseline | model is |", "|---|---|---|---|---|")
    for name, value in sorted(manifest.metrics.items()):
        if name.removeprefix("validation ") not in manifest.compared:
            yield f"| {name} | {value:.4f} | | | |"
    for name, one in sorted(manifest.compared.items()):
        interval = f"{one.interval[0]:.4f} – {one.interval[1]:.4f}" if one.interval else ""
        best = f"{one.baseline} {one.baseline_value:.4f}" if one.baseline else ""
        yield f"| validation {name} | {one.value:.4f} | {interval} | {best} | {one.verdict or ''} |"


def _cleaned(report: CleaningReport) -> Iterator[str]:
    """What was left out of the training range, by rule."""
    before, after = report.before, report.after
    yield f"{before.events:,} events of {before.users:,} users before, {after.events:,} of {after.users:,} after. Only what is"
    yield "learned from is cleaned; evaluation and serving answer every event.\n"
    yield from ("| rule | bound | events left out | users left out |", "|---|---|---|---|")
    yield from (f"| {one.rule} | {one.bound} | {one.rows} | {one.users} |" for one in report.removed)


def _calibrated(manifest: Manifest) -> Iterator[str]:
    yield from ("| head | events | log-loss before → after | ECE before → after |", "|---|---|---|---|")
    for head, one in sorted(manifest.calibration.effects.items()) if manifest.calibration else ():
        losses, errors = (f"{before:.4f} → {after:.4f}" for before, after in (one.log_loss, one.ece))
        yield f"| {head} | {one.events:,} | {losses} | {errors} |"
    if manifest.calibration and (waits := manifest.calibration.waiting):
        pinball, inside = (f"{before:.4f} → {after:.4f}" for before, after in (waits.pinball, waits.inside))
        yield f"\nTimes to the next event, {waits.events:,} events: pinball loss {pinball} log s; {inside} within the outer quantiles."
