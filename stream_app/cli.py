"""The command line. Each command is a few lines around a module that does the work.

Exit codes: 0 done; 1 the answer is no (events left without an answer); 2 it could not be done, and one line on stderr
says why; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import orjson
import typer
from rich.console import Console

from stream_app import behaviors as behavior_files
from stream_app.settings import Settings

if TYPE_CHECKING:  # these load polars or torch; each command imports what it needs
    from stream_app.event_logs import EventLog

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
notes = Console(stderr=True)  # what is said beside the result

Logs = Annotated[list[Path], typer.Argument(metavar="LOG…", help="Event logs; see docs/logs.md for the formats.")]
LogFormat = Annotated[str, typer.Option("--format", help="Format of the log; auto looks at its header.")]
Mapping = Annotated[Path | None, typer.Option(help="TOML file that maps the log's columns.")]
ModelDir = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model directory, or a file with its path.")
]
Broker = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Kafka; several separated by commas.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Protocol = Annotated[
    Literal["time", "leave-one-out"],
    typer.Option(help="What is held out: the last part, or each user's last two events."),
]
Report = Annotated[Path | None, typer.Option(metavar="FILE", help="An .html page; the same as .json beside it.")]
Since = Annotated[float, typer.Option(min=0, max=0.999, help="Leave out this share of the events, by time.")]


@app.callback()
def root() -> None:
    """NextMove predicts what each user does next, while they do it."""


@app.command()
def demo(
    log: Annotated[Path | None, typer.Option(help="A log of yours; default: a simulated shop.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to play the second part of the log.")] = 45,
    seed: Annotated[int, typer.Option(help="Of the simulated shop and the training.")] = 0,
) -> None:
    """Train a small model and watch it predict: embedded broker, real worker, live view, summary."""
    from model.training import TrainingError
    from stream_app.broker import BrokerError
    from stream_app.demo import DemoError, run
    from stream_app.event_logs import LogError
    from stream_app.replay import ReplayError

    with _one_line(BrokerError, DemoError, LogError, ReplayError, TrainingError):
        raise typer.Exit(run(log, seconds=seconds, seed=seed, behaviors=_behaviors(), console=Console()))


@app.command()
def train(
    logs: Logs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes; replaced if it holds a model.")],
    preset: Annotated[str, typer.Option(help="The one dial: small, base or large.")] = "small",
    backbone: Annotated[
        str, typer.Option(help="nextmove, or to compare: gpt2, llama, bert, gru, lstm, rnn.")
    ] = "nextmove",
    split: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the events, by time, to learn from.")] = 0.8,
    protocol: Protocol = "time",
    seed: Annotated[int, typer.Option(help="The same seed and log give the same model.")] = 0,
    time_budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop learning after this time.")] = None,
    clean: Annotated[
        bool, typer.Option(help="Leave out duplicates, impossible times and bots; see docs/logs.md.")
    ] = True,
    rare_items: Annotated[int, typer.Option(min=1, help="Leave out items with fewer events than this.")] = 1,
    stride: Annotated[
        int, typer.Option(min=1, metavar="N", help="So many of a full window's oldest events leave together.")
    ] = 1,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Leave there what the same command needs to go on after a crash."),
    ] = None,
    checkpoint_every: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How often, within an epoch.")] = 60,
    bf16: Annotated[
        bool, typer.Option(help="Compute in bfloat16 where that is enough, for GPUs that have it.")
    ] = False,
    report: Report = None,
    format_: LogFormat = "auto",
    mapping: Mapping = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from logs and publish a model; under torchrun, all of its processes learn one model together.

    With --report, the model is measured on the events that were held out, as `evaluate` does.
    """
    from model.artifact import ArtifactError
    from model.cleaning import OFF, Cleaning
    from model.evaluation import EvaluationError
    from model.group import joined
    from model.report import ReportError, check_place
    from model.training import Keeping, TrainingError
    from model.window import WindowRule
    from stream_app.event_logs import LogError
    from stream_app.learning import examine, learn, training_bar, write_report

    rules = replace(Cleaning() if clean else OFF, rare_items=rare_items)
    with _one_line(ValueError):
        window = WindowRule().with_stride(stride)
    keeping = None if checkpoint is None else Keeping(checkpoint, checkpoint_every)
    errors = (ArtifactError, EvaluationError, LogError, ReportError, TrainingError)
    with joined() as group, _one_line(*errors, silent=not group.leads):
        if report is not None:
            check_place(report)
            if protocol == "time" and split == 1:
                raise typer.BadParameter("--report needs events that are not learned from: a --split below 1")
        notes.quiet = not group.leads
        with training_bar(notes, quiet=quiet or not group.leads) as progress:
            events = _read(logs, format_, mapping)
            result = learn(
                events.frame, _behaviors(), out,
                preset=preset, backbone=backbone, train_until=split, seed=seed, time_budget_s=time_budget, window=window,
                protocol=protocol, cleaning=rules, progress=progress, keeping=keeping, bf16=bf16, group=group,
            )  # fmt: skip
        if report is not None and group.leads:
            write_report(report, out, examine(out, events, protocol, split)[protocol])
    if not group.leads:
        return
    notes.print(f"cleaning: {result.cleaning.line() or 'nothing left out'}")
    if json:
        _print_json({**asdict(result), "directory": str(result.directory)})
    else:
        print(
            f"{result.directory}: model {result.version}, {result.events:,} events of {result.users:,} users, ", end=""
        )
        print(f"best of epoch {result.epochs}, {result.seconds:.0f} s" + (f"; {report}" if report else ""))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the model artefact.")],
    logs: Logs,
    split: Annotated[float, typer.Option(min=0, max=0.999, help="Test on the events after this share, by time.")] = 0.8,
    protocol: Annotated[
        Literal["time", "leave-one-out", "daily"],
        typer.Option(help="Test what follows the split, each user's last event, or each day after the training."),
    ] = "time",
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

    with _one_line(ArtifactError, EvaluationError, LogError, ReportError):
        if report is not None:
            check_place(report)
            if protocol == "daily":
                raise typer.BadParameter("--report is one page: it goes with --protocol time or leave-one-out")
        found = examine(model, _read(logs, format_, mapping), protocol, split)
        if report is not None:
            write_report(report, model, found[protocol])
    if json:
        documents = {name: evaluation.to_dict() for name, evaluation in found.items()}
        _print_json(documents if protocol == "daily" else documents[protocol])
        return
    for name, evaluation in found.items():
        Console().print(evaluation_table(evaluation, name))


@app.command()
def worker(
    model: ModelDir = None,
    broker: Broker = None,
    port: Annotated[int | None, typer.Option(help="Of /metrics, /healthz and /readyz.")] = None,
) -> None:
    """Run a worker: events in, predictions out, until it is stopped."""
    from faust.cli.faust import cli as faust_command

    _override(model=model, broker=broker, web_port=port)
    with _one_line(click.ClickException):
        level = _settings().log_level.replace("warning", "warn")  # Faust's word for it
        faust_command(["--app", "stream_app.app", "worker", "--loglevel", level], standalone_mode=False)


@app.command()
def replay(
    logs: Logs,
    to: Annotated[str, typer.Option(help="kafka, or inline: the same steps without a broker.")],
    speed: Annotated[str, typer.Option(help="Event time over wall time: 1, 60, …, or max.")] = "max",
    model: ModelDir = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Predictions of an inline replay; - is stdout.")
    ] = None,
    since: Since = 0.0,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of the topic that an inline replay imitates.")] = None,
    broker: Broker = None,
    format_: LogFormat = "auto",
    mapping: Mapping = None,
    dry_run: Annotated[bool, typer.Option(help="Read the log and say what would be sent.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Play a log into the input topic, or straight through the pipeline into a file."""
    from stream_app.event_logs import LogError
    from stream_app.player import play_inline, play_to_kafka
    from stream_app.replay import ReplayError

    if to not in ("kafka", "inline"):
        raise typer.BadParameter("--to is kafka or inline")
    if dry_run and to == "inline":
        raise typer.BadParameter("--dry-run goes with --to kafka; an inline replay sends nothing anyway")
    _override(model=model, broker=broker, partitions=partitions)
    with _one_line(LogError, ReplayError):
        settings, frame = _settings(), _read(logs, format_, mapping).frame
        frame = frame.slice(int(len(frame) * since))
        if to == "kafka":
            done = play_to_kafka(frame, settings, _speed(speed), dry_run=dry_run, console=notes, quiet=quiet)
        else:
            now_ms = int(time() * 1000)
            done = play_inline(frame, settings, _behaviors(), out, now_ms=now_ms, console=notes, quiet=quiet)
    if json and str(out) != "-":
        _print_json(done)
    else:
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in done.items()), file=sys.stderr)


@app.command()
def broker(
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 9092,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of each topic.")] = None,
) -> None:
    """Run the embedded development broker in the foreground; it forgets everything when it ends."""
    from stream_app.broker import BrokerError, serve

    _override(partitions=partitions)
    with _one_line(BrokerError):
        settings = _settings()
        names = dict.fromkeys(settings.topics, settings.partitions)

        def ready(address: str) -> None:
            print(f"embedded broker at {address}, topics {', '.join(names)}; Ctrl-C ends it", flush=True)

        serve(names, port=port, on_ready=ready)


@app.command()
def topics(
    broker: Broker = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of each topic.")] = None,
    replication: Annotated[int, typer.Option(min=1, help="Copies of each partition.")] = 1,
    dry_run: Annotated[bool, typer.Option(help="Let the broker judge the plan, and create nothing.")] = False,
) -> None:
    """Create the topics that are missing, and check that all have the same number of partitions."""
    from stream_app.connection import security
    from stream_app.topics import TopicError, check, create, plan

    _override(broker=broker, partitions=partitions)
    with _one_line(TopicError):
        settings = _settings()
        plans, options = plan(*settings.topics, settings.partitions), security(settings)
        timeout_s = settings.broker_timeout_s
        made = asyncio.run(create(settings.broker, plans, replication, timeout_s, dry_run=dry_run, security=options))
        print(f"{'would create' if dry_run else 'created'}: {', '.join(made) or 'nothing'}")
        if not dry_run:
            count = asyncio.run(check(settings.broker, settings.topics, timeout_s, security=options))
            print(f"all topics have {count} partitions")


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines; gzipped if it ends in .gz.")],
    users: Annotated[int | None, typer.Option(min=1)] = None,
    items: Annotated[int | None, typer.Option(min=1)] = None,
    days: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
) -> None:
    """Write the log of a simulated shop."""
    from stream_app.event_logs import LogError, write_jsonl
    from stream_app.simulation import ShopConfig
    from stream_app.simulation import simulate as run

    given = {name: value for name, value in (("users", users), ("items", items), ("days", days)) if value is not None}
    with _one_line(LogError, ValueError):
        frame = run(ShopConfig(seed=seed, **given))
        write_jsonl(frame, out)
    print(f"{out}: {len(frame):,} simulated events of {frame['user_id'].n_unique():,} users")


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="event or prediction.")] = "event",
) -> None:
    """Print the JSON Schema of an event or a prediction, made from the classes."""
    from stream_app.schemas import json_schema

    if what not in ("event", "prediction"):
        raise typer.BadParameter("there are schemas of event and prediction")
    _print_json(json_schema(what))


@app.command()
def settings() -> None:
    """Print the settings in force, secrets redacted."""
    _print_json(_settings().model_dump(mode="json"))


def _settings() -> Settings:
    with _one_line(ValueError):
        return Settings()


def _behaviors() -> behavior_files.Behaviors:
    with _one_line(behavior_files.BehaviorError):
        return behavior_files.load(_settings().behaviors)


def _read(paths: list[Path], format_: str, mapping: Path | None) -> EventLog:
    from stream_app.event_logs import read_log

    now_ms = int(time() * 1000)
    log = read_log(paths, format=format_, behaviors=_behaviors(), mapping=mapping, latest_ms=now_ms, coded=True)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in log.report.dropped.items())
    notes.print(f"{log.report.format}: {log.report.events:,} events" + (f"; left out: {dropped}" if dropped else ""))
    return log


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter("--speed is a positive number, or max")
    return speed


@contextmanager
def _one_line(*expected: type[Exception], silent: bool = False) -> Iterator[None]:
    """What is expected to go wrong becomes one line, unless others say it, and exit code 2."""
    try:
        yield
    except expected as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if not silent:
            print(f"nextmove: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def _override(**options: object) -> None:
    """An option of the command line is worth more than the environment."""
    for name, value in options.items():
        if value is not None:
            os.environ[f"NEXTMOVE_{name.upper()}"] = str(value)


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def main() -> None:
    """The program `nextmove`."""
    app()


if __name__ == "__main__":
    main()
