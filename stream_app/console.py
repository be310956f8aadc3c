"""What the commands of the command line share: options, notes beside the result, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import click
import orjson
import typer
from rich.console import Console

from stream_app import behaviors as behavior_files
from stream_app.settings import Settings

if TYPE_CHECKING:  # loads polars
    from stream_app.event_logs import EventLog

notes = Console(stderr=True)  # what is said beside the result

Logs = Annotated[list[Path], typer.Argument(metavar="LOG…", help="Event logs; see docs/logs.md for the formats.")]
LogFormat = Annotated[str, typer.Option("--format", help="Format of the log; auto looks at its header.")]
Mapping = Annotated[Path | None, typer.Option(help="TOML file that maps the log's columns.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def settings_in_force() -> Settings:
    """Of the environment and the options given."""
    with one_line(ValueError):
        return Settings()


def behaviors_in_force() -> behavior_files.Behaviors:
    """The vocabulary that the settings name."""
    with one_line(behavior_files.BehaviorError):
        return behavior_files.load(settings_in_force().behaviors)


def read(paths: list[Path], format_: str, mapping: Path | None) -> EventLog:
    """A log, with a note of what became of its rows. Raises LogError."""
    from stream_app.event_logs import read_log

    now_ms = int(time() * 1000)
    log = read_log(paths, format=format_, behaviors=behaviors_in_force(), mapping=mapping, latest_ms=now_ms, coded=True)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in log.report.dropped.items())
    notes.print(f"{log.report.format}: {log.report.events:,} events" + (f"; left out: {dropped}" if dropped else ""))
    return log


@contextmanager
def one_line(*expected: type[Exception], silent: bool = False) -> Iterator[None]:
    """What is expected to go wrong becomes one line, unless others say it, and exit code 2."""
    try:
        yield
    except expected as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if not silent:
            print(f"nextmove: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def override(**options: object) -> None:
    """An option of the command line is worth more than the environment."""
    for name, value in options.items():
        if value is not None:
            os.environ[f"NEXTMOVE_{name.upper()}"] = str(value)


def print_json(value: Any) -> None:
    """The result of a command for machines."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
