"""The model directory: written once, whole, and checked on every load.

    config.json         sizes of the network
    model.safetensors   weights (no pickle anywhere)
    vocabulary.json     names and counts
    manifest.json       schema, version, window rule, horizons, training range, metrics, golden answers, checksums
    README.md           the model card

It is written beside its place and renamed into it, so that a reader sees all of it or nothing. The version is a hash of
the content, so equal training gives an equal version. It knows nothing of inference: `Engine.load` checks golden answers.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from model import durable
from model.calibration import Calibration
from model.card import card
from model.cleaning import CleaningReport
from model.config import NextMoveConfig, rows_of
from model.forecast import Forecast
from model.network import NextMoveModel
from model.quiet import quiet
from model.vocabulary import Vocabulary, VocabularyError
from model.window import Window, WindowRule

SCHEMA = 4
MANIFEST = "manifest.json"
LATER = {"behavior_after"}  # weights that schema 2 does not have: zeros, which change nothing
CONTENT = ("config.json", "model.safetensors", "vocabulary.json")
CARD = "README.md"


class ArtifactError(Exception):
    """A model directory that cannot be used or written; the message is one line."""


class Golden(msgspec.Struct, frozen=True):
    """One window and the answer that the model gave to it when it was trained."""

    window: Window
    forecast: Forecast


class TrainingRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model learned from."""

    events: int
    users: int
    from_ms: int
    until_ms: int
    preset: str
    seed: int
    epochs: int
    protocol: str = "time"  # of `model.splits`: what was held out
    backbone: str = "nextmove"
    older: str | None = None  # version of the model that was gone on from


class Epoch(msgspec.Struct, frozen=True):
    """Mean losses of one epoch by head, "loss" their weighted sum; a head without labels is left out."""

    phase: str  # "train", or "refit" on the whole range
    epoch: int
    training: dict[str, float]
    validation: dict[str, float]


class Compared(msgspec.Struct, frozen=True):
    """A measure of the model on the validation part, beside the best baseline."""

    value: float
    interval: tuple[float, float] | None
    baseline: str | None = None
    baseline_value: float | None = None
    verdict: str | None = None


class Described(msgspec.Struct, frozen=True):
    """Items that the model knows by a text."""

    encoder: str
    texts: int  # distinct ones
    items: int  # that have one
    unmet: int  # of which the training range has no event


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about a model that is not a weight or a name; what an older artefact lacks is None or empty."""

    schema: int
    version: str
    window: WindowRule
    behaviors: list[str]
    goal: str
    goal_horizon_ms: int
    churn_horizon_ms: int
    training: TrainingRange
    metrics: dict[str, float]
    popular_items: list[str]
    golden: list[Golden]
    files: dict[str, str] = {}  # name → sha256
    cleaning: CleaningReport | None = None  # of the training range
    calibration: Calibration | None = None
    curve: list[Epoch] = []
    compared: dict[str, Compared] = {}  # measure → on the validation part
    described: Described | None = None


class Artifact(msgspec.Struct, frozen=True):
    """A model directory in memory."""

    model: NextMoveModel
    vocabulary: Vocabulary
    manifest: Manifest


def publish(directory: Path, artifact: Artifact) -> Manifest:
    """Writes the directory, replacing an older artefact in its place; returns the manifest with version and checksums.

    Raises ArtifactError when the place is taken by something that is not an artefact, or cannot be written.
    """
    directory = Path(directory)
    check_place(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise ArtifactError(f"cannot write {directory}: {error.strerror}") from error
    try:
        manifest = _write(beside, artifact)
        beside.chmod(0o755)
        _rename(beside, directory)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {directory}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def check_place(directory: Path) -> None:
    """Raises ArtifactError when publishing there would overwrite something that is not an artefact."""
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise ArtifactError(f"{directory} exists and is not a directory")
    if any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise ArtifactError(f"{directory} holds something that is not a model; choose another place")


def load(directory: Path) -> Artifact:
    """Reads and checks a model directory. Raises ArtifactError with one line that says what is wrong."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name in CONTENT:
        if name not in manifest.files:
            raise ArtifactError(f"{directory}: the manifest lists no {name}")
    for name, expected in manifest.files.items():
        _check_file(directory / name, expected)
    try:
        vocabulary = Vocabulary.from_json((directory / "vocabulary.json").read_bytes())
    except VocabularyError as error:
        raise ArtifactError(f"{directory / 'vocabulary.json'}: {error}") from error
    return Artifact(_load_model(directory, vocabulary), vocabulary, manifest)


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, its version checked against its content; raises ArtifactError."""
    if not directory.is_dir():
        raise ArtifactError(f"no model directory at {directory}")
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{directory} is not a model: it has no {MANIFEST}")
    try:
        raw = path.read_bytes()
        document = msgspec.json.decode(raw)
        schema = document.get("schema") if isinstance(document, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtifactError(f"{path} has schema {schema}, this program reads up to {SCHEMA}: upgrade the program")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    if version_of(manifest) != manifest.version:
        raise ArtifactError(f"{path} was changed after it was written: its version does not match its content")
    return manifest


def version_of(manifest: Manifest) -> str:
    """The content hash: everything in the manifest but the version, checksums of the other files included."""
    document = msgspec.to_builtins(msgspec.structs.replace(manifest, version=""))
    for name in ("stride", "age_stride_ms"):  # which an older manifest does not have
        if document["window"][name] == 1:
            del document["window"][name]
    calibration = document.get("calibration") or {}
    for name in ("times", "waiting"):  # likewise
        if not calibration.get(name):
            calibration.pop(name, None)
    body = msgspec.json.encode(document, order="deterministic")
    return hashlib.sha256(body).hexdigest()[:16]


def _write(beside: Path, artifact: Artifact) -> Manifest:
    with quiet():
        artifact.model.save_pretrained(beside)
    (beside / "vocabulary.json").write_text(artifact.vocabulary.to_json())
    (beside / CARD).write_text(card(artifact.manifest))
    files = {name: _sha256(beside / name) for name in (*CONTENT, CARD)}
    manifest = msgspec.structs.replace(artifact.manifest, schema=SCHEMA, version="", files=files)
    manifest = msgspec.structs.replace(manifest, version=version_of(manifest))
    (beside / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest, order="deterministic")))
    for path in (*beside.iterdir(), beside):
        durable.sync(path)
    return manifest


def _rename(beside: Path, directory: Path) -> None:
    """Into place in one step; an older artefact steps aside first, since a rename replaces no full directory."""
    if directory.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
        directory.rename(aside)  # an empty directory is replaced
        try:
            beside.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        beside.rename(directory)
    durable.sync(directory.parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    if _sha256(path) != expected:
        raise ArtifactError(f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST}")


def _load_model(directory: Path, vocabulary: Vocabulary) -> NextMoveModel:
    try:
        with quiet():
            config = NextMoveConfig.from_pretrained(directory)
            if any(getattr(config, name) != size for name, size in rows_of(vocabulary).items()):
                raise ArtifactError(f"{directory}: config.json and vocabulary.json do not belong together")
            loaded: Any = NextMoveModel.from_pretrained(  # a pair, which its annotation does not say
                directory, config=config, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{directory}: the weights cannot be read: {str(error).splitlines()[0]}") from error
    model, report = loaded
    if set(report["missing_keys"]) == LATER:
        model.behavior_after.data.zero_()
        report["missing_keys"] = []
    if any(report.values()):
        raise ArtifactError(f"{directory}: the weights do not fit this program's network; train again")
    fitting: NextMoveModel = model
    for tensor in (*fitting.parameters(), *fitting.buffers()):
        tensor.data = tensor.data.clone()  # out of the file's mapping: who overwrites it would change a model at work
    return fitting
