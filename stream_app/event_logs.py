"""Event logs on disk → one table of events, and the table back to JSON lines.

A file is read some rows at a time into columns of codes, so that what is needed at once is the events in that form and never
the text of a whole file. Rows that cannot become an event are dropped and counted by reason. How a file is opened, and which of its columns mean
what, is `log_formats.py`'s business. This module knows nothing of Kafka, and it reads no clock.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from stream_app.behaviors import Behaviors
from stream_app.behaviors import load as load_behaviors
from stream_app.log_formats import (
    Field,
    LogError,
    LogFile,
    LogMapping,
    choose,
    formats,
    one_line,
    open_log,
    read_rows,
)

__all__ = ["EventLog", "LogError", "LogReport", "formats", "read_log", "to_records", "write_jsonl"]

EARLIEST_MS = 631_152_000_000  # 1990-01-01T00:00:00Z
LATEST_MS = 4_102_444_800_000  # 2100-01-01T00:00:00Z
MAX_USER_ID_BYTES = 256

REASONS = (
    "malformed",
    "duplicate",
    "missing_user",
    "user_too_long",
    "unknown_behavior",
    "missing_item",
    "bad_timestamp",
)
"""Why a row is dropped. The closed list, in the order in which rows are checked."""

_TEXT: tuple[Field, ...] = ("user_id", "item_id", "category", "event_id", "session_id")
_CODED = ("user_id", "item_id", "category", "behavior", "session_id")  # names that come again and again
_EXTRA = ("event_id", "session_id")  # columns only where the log has them
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class LogReport:
    """What became of the rows of a log: `rows == events + sum(dropped.values())`.

    `dropped` counts rows by reason (see `REASONS`) and has no zeros.
    """

    paths: tuple[Path, ...]
    format: str
    rows: int
    events: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EventLog:
    """The table of events, sorted by `timestamp` (ms UTC) with ties in the order of the log, and its report."""

    frame: pl.DataFrame
    report: LogReport


def read_log(
    paths: Path | Sequence[Path],
    *,
    format: str = "auto",  # noqa: A002  the word that users say
    behaviors: Behaviors | None = None,
    mapping: Path | None = None,
    latest_ms: int | None = None,
    coded: bool = False,
) -> EventLog:
    """Read one log, from one file or from several of the same format, as a table of events.

    With `coded` the names in the table stay codes (polars' Categorical), which take a fraction of the memory of text.
    `format` is a name from `formats()`; "auto" looks at the header. `mapping` is a mapping file and replaces the format.
    Times outside the years 1990 to 2099, or above `latest_ms` (ms UTC) where given, are bad. Raises LogError.
    """
    files = (paths,) if isinstance(paths, Path) else tuple(paths)
    if not files:
        raise LogError("no log given; name at least one file")
    vocabulary = behaviors or load_behaviors()
    latest = LATEST_MS if latest_ms is None else min(LATEST_MS, latest_ms)
    with ExitStack() as opened:
        sources = [opened.enter_context(open_log(path)) for path in files]
        name, chosen = choose(sources[0], format, mapping)
        tables = [_read(source, chosen, vocabulary, latest) for source in sources]
    return _log(files, name, tables, vocabulary, coded=coded)


def _log(files: tuple[Path, ...], name: str, tables: list[_Table], behaviors: Behaviors, *, coded: bool) -> EventLog:
    dropped = {reason: sum(table.dropped.get(reason, 0) for table in tables) for reason in REASONS}
    dropped = {reason: count for reason, count in dropped.items() if count}
    events = pl.concat([table.frame for table in tables])
    if events.is_empty():
        raise LogError(f"{files[0]}: no usable rows as {name}: {_complaint(tables, dropped, behaviors)}")
    tables.clear()  # one copy is enough
    frame = _shape(events, coded=coded)
    return EventLog(frame, LogReport(files, name, frame.height + sum(dropped.values()), frame.height, dropped))


def _shape(events: pl.DataFrame, *, coded: bool) -> pl.DataFrame:
    extra = [name for name in _EXTRA if name in events.columns and events[name].null_count() < events.height]
    columns = ["user_id", "timestamp", "behavior", "item_id", "category", "price", *extra]
    if not events["timestamp"].is_sorted():
        events = events.sort("timestamp", maintain_order=True)
    names = [] if coded else [pl.col(name).cast(pl.String) for name in _CODED if name in columns]
    return events.select(columns).with_columns(names).rechunk()


def _complaint(tables: Sequence[_Table], dropped: Mapping[str, int], behaviors: Behaviors) -> str:
    """Why nothing was left, with an example of the commonest mistakes."""
    if not dropped:
        return "the file has a header and no rows"
    counted = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    worst = max(dropped, key=lambda reason: dropped[reason])
    example = next((repr(table.examples[worst]) for table in tables if worst in table.examples), "it")
    hints = {
        "malformed": "lines are not JSON objects of plain values",
        "unknown_behavior": f"{example} is none of {', '.join(behaviors.names)} or their aliases",
        "missing_item": "these behaviours need an item_id",
        "bad_timestamp": f"{example} does not lie between 1990 and 2100; check the unit",
    }
    return f"{counted}; {hints[worst]}" if worst in hints else counted


# --- rows → checked rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """The events of one file in the order of its rows, and what became of the other rows."""

    frame: pl.DataFrame
    dropped: Mapping[str, int]
    examples: Mapping[str, str | None]  # reason → the first offending value


def _read(source: LogFile, mapping: LogMapping, behaviors: Behaviors, latest: int) -> _Table:
    batches: list[pl.DataFrame] = []
    examples: dict[str, str | None] = {}
    present: set[str] = set()
    malformed = 0
    for rows in read_rows(source, mapping):
        malformed += rows.malformed
        present |= _present(source, rows.frame)
        if source.container != "jsonl":
            _require_columns(source, mapping, present)
        with one_line(source.path):
            batches.append(_checked(rows.frame, mapping, behaviors, latest, examples))
    if any(batch.height for batch in batches):  # where no line could be read, no column is missing
        _require_columns(source, mapping, present)
    with one_line(source.path):
        return _settled(pl.concat(batches), mapping, malformed, examples)


def _checked(
    raw: pl.DataFrame, mapping: LogMapping, behaviors: Behaviors, latest: int, examples: dict[str, str | None]
) -> pl.DataFrame:
    """Some rows as fields and codes, with the `reason` to drop a row or null, as far as it shows by itself."""
    rows = _project(raw, mapping, behaviors, latest).with_columns(reason=_reason(behaviors.about_item))
    faults = {"unknown_behavior": "raw_behavior", "bad_timestamp": "raw_timestamp"}
    for reason, column in faults.items():
        first = rows.filter(pl.col("reason") == reason).head(1)
        if first.height and reason not in examples:
            examples[reason] = first[column].item()
    return rows.select(
        pl.exclude(*_CODED, "raw_behavior", "raw_timestamp", "reason"),
        pl.col([name for name in _CODED if name in rows.columns]).cast(pl.Categorical),
        pl.col("reason").cast(pl.Enum(REASONS)),
        unreadable=pl.col("timestamp").is_null() & pl.col("raw_timestamp").is_not_null(),
    )


def _settled(rows: pl.DataFrame, mapping: LogMapping, malformed: int, examples: Mapping[str, str | None]) -> _Table:
    """The events among all rows of a file: what depends on other rows comes last."""
    if mapping.drop_duplicates:
        repeated = ~pl.col("row").is_first_distinct()
        rows = rows.with_columns(
            reason=pl.when(repeated).then(pl.lit("duplicate", pl.Enum(REASONS))).otherwise("reason")
        )
    if mapping.order is not None:
        rows = _fill_times(rows)
    counts = dict(rows["reason"].drop_nulls().value_counts().iter_rows())
    if counts:
        rows = rows.filter(pl.col("reason").is_null())
    events = rows.drop("row", "order", "unreadable", "reason", strict=False)
    return _Table(events, {**counts, "malformed": malformed}, examples)


def _require_columns(source: LogFile, mapping: LogMapping, present: set[str]) -> None:
    missing = [
        " or ".join(mapping.sources(field))
        for field in mapping.columns
        if field not in mapping.optional and not set(mapping.sources(field)) & present
    ]
    if mapping.order is not None and mapping.order not in present:
        missing.append(mapping.order)
    if missing:
        found = ", ".join(source.header)
        raise LogError(f"{source.path}: missing column {', '.join(missing)}; the file has {found}")


def _present(source: LogFile, frame: pl.DataFrame) -> set[str]:
    """The columns that the file has; for JSON lines those with a value in some row."""
    if source.container != "jsonl":
        return set(frame.columns)
    return {name for name in frame.columns if frame[name].null_count() < frame.height}


def _project(raw: pl.DataFrame, mapping: LogMapping, behaviors: Behaviors, latest: int) -> pl.DataFrame:
    """The fields of an event, row by row; nothing dropped yet."""
    behavior = _behavior_text(raw, mapping)
    times = _first(raw, mapping.sources("timestamp"))
    fields = [field for field in _TEXT if field not in _EXTRA or mapping.sources(field)]
    columns: dict[str, pl.Series] = {field: _as_text(_first(raw, mapping.sources(field))) for field in fields}
    return pl.DataFrame(
        columns
        | {
            "price": _price(_first(raw, mapping.sources("price"))),
            "raw_behavior": behavior,
            "behavior": _resolve(behavior, mapping, behaviors),
            "raw_timestamp": _as_text(times),
            "timestamp": _within(_milliseconds(times, mapping), latest),
        }
        | ({"order": _number(_first(raw, [mapping.order]))} if mapping.order else {})
        | ({"row": raw.hash_rows(seed=0)} if mapping.drop_duplicates else {})
    )


def _behavior_text(raw: pl.DataFrame, mapping: LogMapping) -> pl.Series:
    if mapping.constant_behavior is not None:
        return pl.repeat(mapping.constant_behavior, raw.height, dtype=pl.String, eager=True)
    return _as_text(_first(raw, mapping.sources("behavior")))


def _first(raw: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    """The first of the columns that has a value, row by row; null where none has."""
    present = [raw[name] for name in names if name in raw.columns]
    if len(present) == 1:
        return present[0]
    if not present:
        return pl.repeat(None, raw.height, dtype=pl.String, eager=True)
    return raw.select(pl.coalesce([_as_text(column) for column in present])).to_series()


def _as_text(column: pl.Series) -> pl.Series:
    """Text, with null for ""; whole numbers that a log keeps as floats lose their ".0"."""
    text = column.cast(pl.String, strict=False)
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        text = whole.cast(pl.String).zip_with(whole == column, text)
    return text.set(text == "", None)


def _resolve(behavior: pl.Series, mapping: LogMapping, behaviors: Behaviors) -> pl.Series:
    """Canonical names by one look-up per distinct name; null where the vocabulary does not know it."""
    names = behavior.drop_nulls().unique().to_list()
    meanings = [behaviors.resolve(mapping.behaviors.get(name, name)) for name in names]
    return behavior.replace_strict(names, meanings, default=None, return_dtype=pl.String)


def _price(column: pl.Series) -> pl.Series:
    price = column.cast(pl.Float64, strict=False)
    return price.set(~price.is_finite(), None)


def _number(column: pl.Series) -> pl.Series:
    return column.cast(pl.Float64, strict=False)


def _milliseconds(times: pl.Series, mapping: LogMapping) -> pl.Series:
    """Times in ms UTC; null where unreadable. Times without an offset are UTC. Ties and order are not touched."""
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("ms")).dt.timestamp("ms")
    text = times.cast(pl.String, strict=False).str.strip_chars()
    if mapping.timestamp_format is not None:
        return text.str.to_datetime(mapping.timestamp_format, time_unit="ms", strict=False).dt.timestamp("ms")
    per_unit = {"s": 1_000.0, "ms": 1.0, "us": 0.001}[mapping.timestamp_unit or "ms"]
    numbers = (text.cast(pl.Float64, strict=False) * per_unit).round().cast(pl.Int64, strict=False)
    if mapping.timestamp_unit is None and numbers.null_count():
        return numbers.zip_with(numbers.is_not_null(), _rfc3339(text))
    return numbers


def _rfc3339(text: pl.Series) -> pl.Series:
    normal = text.str.to_uppercase().str.replace(" ", "T", literal=True)
    aware = normal.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="ms", strict=False).dt.timestamp("ms")
    naive = normal.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", strict=False).dt.timestamp("ms")
    return aware.zip_with(aware.is_not_null(), naive)


def _within(times: pl.Series, latest: int) -> pl.Series:
    return times.set(~((times >= EARLIEST_MS) & (times < LATEST_MS) & (times <= latest)), None)


def _fill_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Each user's rows in their `order`; empty times interpolated between known neighbours, held at the ends.

    Times never go back inside a user, so that sorting by time keeps the order. A time that was not filled is still bad.
    """
    first_row = pl.int_range(pl.len()).min().over("user_id")
    ordered = rows.sort(first_row, "order", maintain_order=True, nulls_last=True)
    known = pl.col("timestamp")
    filled = known.interpolate().forward_fill().backward_fill().round().cast(pl.Int64).cum_max().over("user_id")
    settled = ordered.with_columns(timestamp=pl.when(~pl.col("unreadable")).then(filled))
    late = pl.when(pl.col("timestamp").is_null()).then(pl.lit("bad_timestamp", pl.Enum(REASONS)))
    other = pl.when(pl.col("reason") != "bad_timestamp").then("reason")  # which was said before times were filled
    return settled.with_columns(reason=pl.coalesce(other, late))


def _reason(about_item: frozenset[str]) -> pl.Expr:
    """The first of `REASONS` that applies to a row by itself, else null."""
    checks = {
        "missing_user": pl.col("user_id").is_null(),
        "user_too_long": pl.col("user_id").str.len_bytes() > MAX_USER_ID_BYTES,
        "unknown_behavior": pl.col("behavior").is_null(),
        "missing_item": pl.col("behavior").is_in(sorted(about_item)) & pl.col("item_id").is_null(),
        "bad_timestamp": pl.col("timestamp").is_null(),
    }
    return pl.coalesce([pl.when(check).then(pl.lit(reason)) for reason, check in checks.items()])


# --- events → records -----------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, omit_defaults=True, gc=False):
    """The event contract as far as the table of events holds it; null fields are left out of the JSON."""

    user_id: str
    behavior: str
    timestamp: int
    item_id: str | None = None
    category: str | None = None
    price: float | None = None
    event_id: str | None = None
    session_id: str | None = None


def to_records(frame: pl.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Each event as a Kafka record, in the order of the frame: (user id in UTF-8, event contract in JSON).

    `timestamp` is written as an integer, ms UTC; null fields and prices that are not finite are left out.
    """
    encode = msgspec.json.Encoder().encode
    columns = _record_columns(frame)
    for chunk in frame.select(columns).iter_slices(_CHUNK):
        for row in zip(*(column.to_list() for column in chunk), strict=True):
            yield row[0].encode(), encode(_Event(*row))


def _record_columns(frame: pl.DataFrame) -> list[pl.Expr]:
    """The fields of `_Event` in its order; null where the frame has no such column."""
    known = {name: pl.col(name) for name in frame.columns}
    if "price" in known:
        known["price"] = pl.when(pl.col("price").is_finite()).then("price")
    return [known.get(name, pl.lit(None)).alias(name) for name in _Event.__struct_fields__]


def write_jsonl(frame: pl.DataFrame, path: Path) -> None:
    """Write a table of events as JSON lines in the event contract, gzipped where `path` ends in .gz. Raises LogError.

    The file appears whole or not at all, and the same frame always gives the same bytes.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                    packed.writelines(_lines(frame))
            else:
                file.writelines(_lines(frame))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LogError(f"{path}: {error.strerror or error}") from None


def _lines(frame: pl.DataFrame) -> Iterator[bytes]:
    return (value + b"\n" for _, value in to_records(frame))
