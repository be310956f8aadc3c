"""The command line. Each command is a few lines around a module that does the work.

Exit codes: 0 done; 1 the answer is no (events left without an answer); 2 it could not be done, and one line on stderr
says why; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from time import time
from typing import Annotated

import click
import typer
from rich.console import Console

from stream_app import model_commands
from stream_app.console import (
    Json,
    LogFormat,
    Logs,
    Mapping,
    Quiet,
    behaviors_in_force,
    notes,
    one_line,
    override,
    print_json,
    read,
    settings_in_force,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ModelDir = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model directory, or a file with its path.")
]
Broker = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Kafka; several separated by commas.")]
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

    with one_line(BrokerError, DemoError, LogError, ReplayError, TrainingError):
        raise typer.Exit(run(log, seconds=seconds, seed=seed, behaviors=behaviors_in_force(), console=Console()))


app.command()(model_commands.train)
app.command()(model_commands.evaluate)
app.command()(model_commands.backtest)


@app.command()
def worker(
    model: ModelDir = None,
    broker: Broker = None,
    port: Annotated[int | None, typer.Option(help="Of /metrics, /healthz and /readyz.")] = None,
) -> None:
    """Run a worker: events in, predictions out, until it is stopped."""
    from faust.cli.faust import cli as faust_command

    override(model=model, broker=broker, web_port=port)
    with one_line(click.ClickException):
        level = settings_in_force().log_level.replace("warning", "warn")  # Faust's word for it
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
    override(model=model, broker=broker, partitions=partitions)
    with one_line(LogError, ReplayError):
        settings, frame = settings_in_force(), read(logs, format_, mapping).frame
        frame = frame.slice(int(len(frame) * since))
        if to == "kafka":
            done = play_to_kafka(frame, settings, _speed(speed), dry_run=dry_run, console=notes, quiet=quiet)
        else:
            now_ms = int(time() * 1000)
            done = play_inline(frame, settings, behaviors_in_force(), out, now_ms=now_ms, console=notes, quiet=quiet)
    if json and str(out) != "-":
        print_json(done)
    else:
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in done.items()), file=sys.stderr)


@app.command()
def broker(
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 9092,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of each topic.")] = None,
) -> None:
    """Run the embedded development broker in the foreground; it forgets everything when it ends."""
    from stream_app.broker import BrokerError, serve

    override(partitions=partitions)
    with one_line(BrokerError):
        settings = settings_in_force()
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

    override(broker=broker, partitions=partitions)
    with one_line(TopicError):
        settings = settings_in_force()
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
    with one_line(LogError, ValueError):
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
    print_json(json_schema(what))


@app.command()
def settings() -> None:
    """Print the settings in force, secrets redacted."""
    print_json(settings_in_force().model_dump(mode="json"))


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


def main() -> None:
    """The program `nextmove`."""
    app()


if __name__ == "__main__":
    main()
