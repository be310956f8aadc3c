"""The pipeline as the settings want it, for the worker and for the inline replay."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from model.artifact import ArtifactError
from model.compiling import can_compile
from model.devices import choose_device, fastest_dtype
from model.engine import Engine
from model.hiding import Hidden
from model.threads import shared
from stream_app import banned_items
from stream_app.behaviors import Behaviors
from stream_app.events import EventDecoder
from stream_app.expiry import Expiry, Users, idle_limit_ms
from stream_app.history import HistoryRule
from stream_app.history_cache import HistoryCache
from stream_app.pipeline import Pipeline, Predictor
from stream_app.settings import Settings

MOST_POINTER_BYTES = 4096


def load_engine(settings: Settings) -> Engine:
    """The model that the settings name, on its device, with room for users' states. Raises ArtifactError, ValueError.

    It lists what the settings allow to be listed.
    """
    if settings.model is None:
        raise ArtifactError("no model: pass --model DIR or set NEXTMOVE_MODEL; `nextmove train` makes one")
    hidden = hidden_items(settings)
    return _engine(model_directory(settings.model), settings, hidden, is_first=True)


def hidden_items(settings: Settings) -> Hidden:
    """What is not to be listed, read anew. Raises BannedItemsError."""
    place = settings.banned_items
    return Hidden(frozenset() if place is None else banned_items.read(place), settings.hide_seen)


def load_successor(directory: Path, settings: Settings) -> Engine:
    """A model for a process that has one at work already, warm, and hiding nothing. Raises whatever a model may.

    How many threads there are is the process's, and stays as it is.
    """
    engine = _engine(directory, settings)
    if not engine.compiled:
        engine.warm()
    return engine


def _engine(directory: Path, settings: Settings, hidden: Hidden | None = None, *, is_first: bool = False) -> Engine:
    device = choose_device(settings.device)
    compiled = settings.compile and can_compile(device)
    threads, helped = _threads(settings, compiled)
    threads_now = threads if is_first else None
    engine = Engine.load(directory, device, settings.top_k, threads_now, compiled, helped, settings.few_in_int8)
    if hidden is not None:
        engine.hide(hidden)  # before anything is recorded
    if settings.states_mb:
        wanted = settings.states_precision
        dtype = fastest_dtype(device) if wanted == "auto" else getattr(torch, wanted)
        engine.keep_states(settings.states_mb << 20, bans_change=settings.banned_items is not None, dtype=dtype)
    if engine.compiled:
        engine.warm()  # windows that are no steps
    return engine


def _threads(settings: Settings, compiled: bool) -> tuple[int, bool]:
    """As of `model.threads.shared`; by default a core is left to the stream, or what the helper leaves of the second of two."""
    cores = os.cpu_count() or 1
    threads, helped = shared(settings.threads or max(min(cores, 2), cores - 1), compiled=compiled)
    return (threads if helped or settings.threads else max(1, cores - 1)), helped


def model_directory(place: Path) -> Path:
    """`place` itself, or where it points to if it is a file: one line, a path, from the file's own directory. Raises ArtifactError."""
    try:
        if not place.is_file():
            return place
        with place.open("rb") as file:
            text = file.read(MOST_POINTER_BYTES + 1).decode().strip()
    except OSError as error:
        raise ArtifactError(f"cannot read {place}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not 0 < len(text) < MOST_POINTER_BYTES:
        raise ArtifactError(f"{place} is neither a model directory nor a text file that holds the path of one")
    return place.parent / text


def new_pipeline(
    predictor: Predictor,
    settings: Settings,
    behaviors: Behaviors,
    load: Callable[[bytes], bytes | None] = lambda _: None,
    users: Users | None = None,
    most_scored: float = math.inf,
) -> Pipeline:
    """A pipeline around `predictor`. Raises ValueError.

    `load` reads stored histories by user id, and by default there are none. `users` walks over all of them, to find the
    idle ones; without it nobody expires, which changes no prediction of an event in time. `most_scored` as in `Pipeline`.
    """
    lateness_ms = int(settings.lateness_s * 1000)
    idle_ms = idle_limit_ms(settings.idle_s, HistoryRule(predictor.window, lateness_ms))
    decoder = EventDecoder(
        behaviors, max_bytes=settings.max_event_bytes, max_future_ms=int(settings.max_future_s * 1000)
    )
    return Pipeline(
        predictor,
        decoder,
        HistoryCache(load, settings.cached_users),
        source=f"nextmove/{settings.app_id}",
        lateness_ms=lateness_ms,
        expiry=None if users is None or math.isinf(idle_ms) else Expiry(idle_ms, users, 2 * settings.chunk_records),
        most_scored=most_scored,
    )
