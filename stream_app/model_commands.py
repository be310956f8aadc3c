"""The commands that make models and measure them: train, evaluate, backtest."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from stream_app.console import (
    Json,
    LogFormat,
    Logs,
    Mapping,
    Quiet,
    behaviors_in_force,
    notes,
    one_line,
    print_json,
    read,
)

if TYPE_CHECKING:  # loads torch; each command imports what it needs
    from model.group import Group
    from model.item_text import ItemText
    from model.training import TrainResult

Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes; replaced if it holds a model.")]
Preset = Annotated[str, typer.Option(help="The one dial: small, base or large.")]
Backbone = Annotated[str, typer.Option(help="nextmove, or to compare: gpt2, llama, bert, gru, lstm, rnn.")]
Learned = Annotated[float, typer.Option(min=0.01, max=1, help="Share of the events, by time, to learn from.")]
Held = Annotated[
    Literal["time", "leave-one-out"],
    typer.Option(help="What is held out: the last part, or each user's last two events."),
]
Seed = Annotated[int, typer.Option(help="The same seed and log give the same model.")]
Budget = Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop learning after this time.")]
Clean = Annotated[bool, typer.Option(help="Leave out duplicates, impossible times and bots; see docs/logs.md.")]
Rare = Annotated[int, typer.Option(min=1, help="Leave out items with fewer events than this.")]
Stride = Annotated[
    int, typer.Option(min=1, metavar="N", help="So many of a full window's oldest events leave together.")
]
Kept = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Leave there what the same command needs to go on after a crash.")
]
Every = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How often, within an epoch.")]
Bfloat16 = Annotated[
    Literal["auto", "off", "blocks", "all"],
    typer.Option(
        help="What is computed in bfloat16 while learning: auto is blocks where that is faster; all is for GPUs."
    ),
]
Crop = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the stretches of lives that lose their oldest events each time."),
]
Mask = Annotated[float | None, typer.Option(min=0, max=1, help="Share of known items that are shown as unknown.")]
Reorder = Annotated[float | None, typer.Option(min=0, max=1, help="Share of the stretches with a shuffled part.")]
Text = Annotated[
    str | None,
    typer.Option(
        "--item-text",
        metavar="FILE|COLUMN,…",
        help="What is written about items: a catalogue with item_id and text, or columns of the log.",
    ),
]
Encoder = Annotated[
    Path | None,
    typer.Option("--text-encoder", metavar="DIR", help="A sentence-transformers directory; see the extra text."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="tensorboard:DIR|mlflow:URI", help="Who else hears of it; may come more than once."),
]
Prices = Annotated[bool, typer.Option(help="Let the network see items' prices, where the log has any.")]
Older = Annotated[
    Path | None,
    typer.Option("--from", metavar="DIR", help="Go on from this model with what the log has that is newer."),
]
Replay = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of the older events that are learned from again, with an older model."),
]
Report = Annotated[Path | None, typer.Option(metavar="FILE", help="An .html page; the same as .json beside it.")]
Tested = Annotated[float, typer.Option(min=0, max=0.999, help="Test on the events after this share, by time.")]
Asked = Annotated[
    Literal["time", "leave-one-out", "daily"],
    typer.Option(help="Test what follows the split, each user's last event, or each day after the training."),
]


def train(
    logs: Logs,
    out: Out,
    preset: Preset = "small",
    backbone: Backbone = "nextmove",
    split: Learned = 0.8,
    protocol: Held = "time",
    seed: Seed = 0,
    time_budget: Budget = None,
    clean: Clean = True,
    rare_items: Rare = 1,
    stride: Stride = 1,
    checkpoint: Kept = None,
    checkpoint_every: Every = 60,
    bfloat16: Bfloat16 = "auto",
    crop: Crop = None,
    mask: Mask = None,
    reorder: Reorder = None,
    item_text: Text = None,
    text_encoder: Encoder = None,
    prices: Prices = False,
    older: Older = None,
    replay: Replay = 0.25,
    track: Track = None,
    report: Report = None,
    format_: LogFormat = "auto",
    mapping: Mapping = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from logs and publish a model; under torchrun, all of its processes learn one model together.

    With --report, the model is measured on the events that were held out, as `evaluate` does.
    """
    from model.cleaning import OFF, Cleaning
    from model.group import joined
    from model.recipe import Augmentation
    from model.trackers import TrackerError, tracker
    from model.training import Keeping
    from model.warm_start import WarmStart
    from model.window import WindowRule

    with one_line(ValueError, TrackerError):
        window = WindowRule().with_stride(stride)
        trackers = [tracker(one) for one in track or ()]
        augmentation = Augmentation(crop, mask, reorder)
    options: dict[str, Any] = {
        "preset": preset, "backbone": backbone, "train_until": split, "protocol": protocol, "seed": seed,
        "time_budget_s": time_budget, "cleaning": replace(Cleaning() if clean else OFF, rare_items=rare_items),
        "window": window, "keeping": checkpoint and Keeping(checkpoint, checkpoint_every), "bfloat16": bfloat16, "callbacks": trackers,
        "prices": prices, "warm": older and WarmStart(older, replay), "augmentation": augmentation,
    }  # fmt: skip
    with joined() as group:
        notes.quiet = not group.leads
        text = None if item_text is None else _texts(item_text, text_encoder, logs, format_, mapping)
        options["text"] = text
        result = _train(logs, format_, mapping, out, report, group, quiet=quiet, options=options)
    if group.leads:
        _say(result, report, json=json)


def _train(
    logs: list[Path],
    format_: str,
    mapping: Path | None,
    out: Path,
    report: Path | None,
    group: Group,
    *,
    quiet: bool,
    options: dict[str, Any],
) -> TrainResult:
    """One process's part of `train`."""
    from model.artifact import ArtifactError
    from model.evaluation import EvaluationError
    from model.report import ReportError, check_place
    from model.trackers import TrackerError
    from model.training import TrainingError
    from stream_app.event_logs import LogError
    from stream_app.learning import examine, learn, training_bar, write_report

    protocol, split = options["protocol"], options["train_until"]
    errors = (ArtifactError, EvaluationError, LogError, ReportError, TrackerError, TrainingError)
    with one_line(*errors, silent=not group.leads):
        if report is not None:
            check_place(report)
            if protocol == "time" and split == 1:
                raise typer.BadParameter("--report needs events that are not learned from: a --split below 1")
        with training_bar(notes, quiet=quiet or not group.leads) as bar:
            events = read(logs, format_, mapping)
            options["callbacks"] = [bar, *options["callbacks"]]
            result = learn(events.frame, behaviors_in_force(), out, group=group, **options)
        if report is not None and group.leads:
            write_report(report, out, examine(out, events, protocol, split)[protocol])
    return result


def _texts(source: str, encoder: Path | None, logs: list[Path], format_: str, mapping: Path | None) -> ItemText:
    """The items' texts as vectors."""
    from model.item_text import encoded
    from model.text_encoder import TextError, default_encoder
    from stream_app.event_logs import LogError
    from stream_app.item_texts import read_texts

    with one_line(LogError, TextError):
        directory = encoder or default_encoder()
        found = read_texts(source, logs, format=format_, mapping=mapping)
        text = encoded(
            found.texts, directory, catalogue=found.catalogue, categories=found.categories, prices=found.prices
        )
    notes.print(
        f"item text: {len(text.items):,} items, {len(text.vectors):,} distinct texts, encoded by {text.encoder}"
    )
    return text


def _say(result: TrainResult, report: Path | None, *, json: bool) -> None:
    notes.print(f"cleaning: {result.cleaning.line() or 'nothing left out'}")
    if json:
        print_json({**asdict(result), "directory": str(result.directory)})
    else:
        print(
            f"{result.directory}: model {result.version}, {result.events:,} events of {result.users:,} users, ", end=""
        )
        print(f"best of epoch {result.epochs}, {result.seconds:.0f} s" + (f"; {report}" if report else ""))


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the model artefact.")],
    logs: Logs,
    split: Tested = 0.8,
    protocol: Asked = "time",
    report: Report = None,
    format_: LogFormat = "auto",
    mapping: Mapping = None,
    json: Json = False,
) -> None:
    """Measure a model on the last part of a log, beside popularity, repeat, frequency and Markov on the same events."""
    from model.artifact import ArtifactError
    from model.evaluation import EvaluationError
    from model.report import ReportError, check_place
    from stream_app.event_logs import LogError
    from stream_app.learning import evaluation_table, examine, write_report

    with one_line(ArtifactError, EvaluationError, LogError, ReportError):
        if report is not None:
            check_place(report)
            if protocol == "daily":
                raise typer.BadParameter("--report is one page: it goes with --protocol time or leave-one-out")
        found = examine(model, read(logs, format_, mapping), protocol, split)
        if report is not None:
            write_report(report, model, found[protocol])
    if json:
        documents = {name: evaluation.to_dict() for name, evaluation in found.items()}
        print_json(documents if protocol == "daily" else documents[protocol])
        return
    for name, evaluation in found.items():
        Console().print(evaluation_table(evaluation, name))


def backtest(
    logs: Logs,
    days: Annotated[int, typer.Option(min=1, help="How many of the last days are tested.")] = 3,
    update: Annotated[
        list[str] | None,
        typer.Option(metavar="retrain|fine-tune|keep", help="How the model is kept up to date; several are compared."),
    ] = None,
    replay: Replay = 0.25,
    preset: Preset = "small",
    backbone: Backbone = "nextmove",
    seed: Seed = 0,
    time_budget: Budget = None,
    clean: Clean = True,
    stride: Stride = 1,
    format_: LogFormat = "auto",
    mapping: Mapping = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on all days up to one and test the next, day by day: by a new training, or by going on from yesterday's model."""
    from model.backtest import backtest as run
    from model.cleaning import OFF, Cleaning
    from model.evaluation import EvaluationError
    from model.training import TrainingError
    from model.window import WindowRule
    from stream_app.event_logs import LogError
    from stream_app.learning import backtest_table, learn, training_bar

    with one_line(EvaluationError, LogError, TrainingError, ValueError):
        events = read(logs, format_, mapping)
        options = {
            "preset": preset, "backbone": backbone, "seed": seed, "time_budget_s": time_budget,
            "cleaning": Cleaning() if clean else OFF, "window": WindowRule().with_stride(stride),
        }  # fmt: skip
        with training_bar(notes, quiet=quiet) as bar:
            learned = partial(learn, behaviors=behaviors_in_force(), callbacks=[bar])
            found = list(run(events.frame, learned, days, update or ["retrain"], replay, **options))
    if json:
        told = [
            {"update": one.update, "day": one.day, "seconds": one.seconds, **one.evaluation.to_dict()} for one in found
        ]
        print_json(told)
    else:
        Console().print(backtest_table(found))
