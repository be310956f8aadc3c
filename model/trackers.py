"""Trackers of experiments that hear of a training: TensorBoard and MLflow, each where its package is installed.

Told are the options, the loss of each batch, all losses of each epoch, and the figures of the model. A tracker that cannot
begin refuses the training; one that fails later is left alone, with a warning: a training is worth more than its log.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from model.artifact import Epoch, Manifest
from model.callbacks import Callback, Progress

log = logging.getLogger("nextmove")

EXPERIMENT = "nextmove"  # in MLflow
BATCH = 1000  # metrics, MLflow's most
LONGEST = 500  # characters of an option in MLflow


class TrackerError(Exception):
    """A tracker that is none or cannot begin; the message is one line."""


class Journal(Protocol):
    """Where a tracker writes; whatever goes wrong may be any exception."""

    def options(self, options: Mapping[str, str]) -> None:
        """Once, at first."""

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """Now and then; steps are counted from 1 for each name."""

    def flush(self) -> None:
        """After each epoch."""

    def end(self, version: str | None) -> None:
        """Once, with the model's version; None after an error."""


def tracker(text: str) -> Tracker:
    """The tracker that `KIND:PLACE` names; raises TrackerError."""
    kind, _, place = text.partition(":")
    if kind not in KINDS or not place:
        raise TrackerError(f"{text!r} is no tracker; give tensorboard:DIR or mlflow:URI")
    package, journal = KINDS[kind]
    if find_spec(package) is None:
        raise TrackerError(f"{kind} is not installed; pip install 'nextmove[trackers]'")
    return Tracker(text, journal, place)


class Tracker(Callback):
    """Writes what it hears into a journal that it opens when the training begins."""

    def __init__(self, name: str, kind: type[TensorBoard] | type[MLflow], place: str) -> None:
        self._name, self._kind, self._place = name, kind, place
        self._journal: Journal | None = None

    def on_begin(self, options: Mapping[str, object]) -> None:
        """Raises TrackerError."""
        try:
            self._journal = self._kind(self._place)
            self._journal.options(dict(flat(options)))
        except Exception as error:
            raise TrackerError(f"{self._name} cannot be written: {_line(error)}") from error

    def on_step(self, progress: Progress) -> None:
        """The loss of a batch."""
        if progress.batches and progress.loss is not None:
            self._write({f"{progress.phase}/batch loss": progress.loss}, progress.batches)

    def on_epoch(self, epoch: Epoch) -> None:
        """The mean losses of an epoch."""
        for part, losses in (("training", epoch.training), ("validation", epoch.validation)):
            self._write({f"{epoch.phase}/{part} {name}": value for name, value in losses.items()}, epoch.epoch)
        self._tell("flush")

    def on_end(self, manifest: Manifest) -> None:
        """The figures of the model."""
        self._write({f"model/{name}": value for name, value in manifest.metrics.items()}, 1)
        self._tell("end", manifest.version)

    def on_error(self) -> None:
        """There will be no model."""
        self._tell("end", None)

    def _write(self, figures: Mapping[str, float], step: int) -> None:
        if figures:
            self._tell("figures", figures, step)

    def _tell(self, what: str, *given: object) -> None:
        if self._journal is None:
            return
        try:
            getattr(self._journal, what)(*given)
        except Exception as error:  # noqa: BLE001  # whatever it is, the training goes on
            log.warning("%s gets no more of this training: %s", self._name, _line(error))
            self._journal = None


class TensorBoard:
    """Event files in a directory."""

    def __init__(self, place: str) -> None:
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(place)

    def options(self, options: Mapping[str, str]) -> None:
        """A table in Markdown."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in options.items())
        self._writer.add_text("options", f"| option | value |\n|---|---|\n{rows}")

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """One curve per name."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the disk."""
        self._writer.flush()

    def end(self, version: str | None) -> None:
        """Closes the file."""
        self._writer.add_text("model", version or "none: the training failed")
        self._writer.close()


class MLflow:
    """A run at a tracking server, in the experiment `EXPERIMENT`."""

    def __init__(self, place: str) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient(tracking_uri=place)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        self._run: str = self._client.create_run(experiment).info.run_id
        self._waiting: list[Any] = []  # a request per batch would take longer than the batch

    def options(self, options: Mapping[str, str]) -> None:
        """Parameters of the run."""
        from mlflow.entities import Param

        params = [Param(mlflow_name(name), value[:LONGEST]) for name, value in options.items()]
        self._client.log_batch(self._run, params=params)

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """Waits for the next flush."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(mlflow_name(name), value, now_ms, step) for name, value in figures.items()]

    def flush(self) -> None:
        """Sends what waits."""
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:BATCH])
            del self._waiting[:BATCH]

    def end(self, version: str | None) -> None:
        """Ends the run."""
        self.flush()
        if version is not None:
            self._client.set_tag(self._run, "model version", version)
        self._client.set_terminated(self._run, "FAILED" if version is None else "FINISHED")


KINDS: dict[str, tuple[str, type[TensorBoard] | type[MLflow]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "mlflow": ("mlflow", MLflow),
}


def flat(options: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options within options under names with dots, as text."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def mlflow_name(name: str) -> str:
    """With the characters alone that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
