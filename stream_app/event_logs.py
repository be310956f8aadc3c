"""Event logs on disk → one table of events, and the table back to JSON lines.

A *mapping* (TOML) says how a log's columns become the fields of an event; the ready ones lie in `formats/`. Rows that
cannot become an event are dropped and counted by reason. This module knows nothing of Kafka, and it reads no clock.
"""

from __future__ import annotations

import csv
import gzip
import re
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl

from stream_app.behaviors import Behaviors
from stream_app.behaviors import load as load_behaviors

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

Field = Literal["user_id", "timestamp", "behavior", "item_id", "category", "price", "event_id", "session_id"]
Container = Literal["csv", "parquet", "jsonl"]

_TEXT: tuple[Field, ...] = ("user_id", "item_id", "category", "event_id", "session_id")
_EXTRA = ("event_id", "session_id")  # columns only where the log has them
_CHUNK = 65_536


class LogError(Exception):
    """A log cannot be read or written; the message is one line: the file, what is wrong, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message))


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


class _Mapping(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The shape of a mapping file; `docs/logs.md` describes each key."""

    columns: dict[Field, str | list[str]]
    description: str = "a mapping of your own"
    container: Container | None = None
    separator: str | None = None
    column_names: list[str] = []
    constant_behavior: str | None = None
    behaviors: dict[str, str] = {}
    timestamp_unit: Literal["s", "ms", "us"] | None = None
    timestamp_format: str | None = None
    order: str | None = None
    drop_duplicates: bool = False
    optional: list[Field] = []
    header: list[str] = []
    first_line: str | None = None

    def sources(self, field: Field) -> list[str]:
        """The log's columns that `field` comes from; the first one that is not empty counts."""
        names = self.columns.get(field, [])
        return [names] if isinstance(names, str) else names


@dataclass(frozen=True, slots=True)
class _Source:
    """One file, unpacked: `data` is empty for Parquet, which is read from disk; `header` is its best guess at names."""

    path: Path
    container: Container
    data: bytes
    first_line: str
    separator: str
    header: list[str]


@dataclass(frozen=True, slots=True)
class _Raw:
    """The rows of one file under the log's own column names, and the number of rows that could not be read."""

    frame: pl.DataFrame
    malformed: int = 0


def formats() -> dict[str, str]:
    """The ready-made formats: name → one line of description."""
    return {name: mapping.description for name, mapping in _ready().items()}


def read_log(
    paths: Path | Sequence[Path],
    *,
    format: str = "auto",  # noqa: A002  the word that users say
    behaviors: Behaviors | None = None,
    mapping: Path | None = None,
    latest_ms: int | None = None,
) -> EventLog:
    """Read one log, from one file or from several of the same format, as a table of events.

    `format` is a name from `formats()`; "auto" looks at the header. `mapping` is a mapping file and replaces the format.
    Times outside the years 1990 to 2099, or above `latest_ms` (ms UTC) where given, are bad. Raises LogError.
    """
    files = (paths,) if isinstance(paths, Path) else tuple(paths)
    if not files:
        raise LogError("no log given; name at least one file")
    vocabulary = behaviors or load_behaviors()
    sources = [_open(path) for path in files]
    name, chosen = _choose(sources[0], format, mapping)
    latest = LATEST_MS if latest_ms is None else min(LATEST_MS, latest_ms)
    tables = [_read(source, chosen, vocabulary, latest) for source in sources]
    return _log(files, name, tables, vocabulary)


def _log(files: tuple[Path, ...], name: str, tables: Sequence[_Table], behaviors: Behaviors) -> EventLog:
    checked = pl.concat([table.frame for table in tables])
    malformed = sum(table.malformed for table in tables)
    dropped = _dropped(checked, malformed)
    events = checked.filter(pl.col("reason").is_null())
    if events.is_empty():
        raise LogError(f"{files[0]}: no usable rows as {name}: {_complaint(checked, dropped, behaviors)}")
    frame = _shape(events)
    report = LogReport(files, name, checked.height + malformed, frame.height, dropped)
    return EventLog(frame, report)


def _shape(events: pl.DataFrame) -> pl.DataFrame:
    extra = [name for name in _EXTRA if events[name].null_count() < events.height]
    columns = ["user_id", "timestamp", "behavior", "item_id", "category", "price", *extra]
    return events.select(columns).sort("timestamp", maintain_order=True).rechunk()


def _dropped(checked: pl.DataFrame, malformed: int) -> dict[str, int]:
    counts = dict(checked["reason"].drop_nulls().value_counts().iter_rows())
    counts["malformed"] = malformed
    return {reason: counts[reason] for reason in REASONS if counts.get(reason)}


def _complaint(checked: pl.DataFrame, dropped: Mapping[str, int], behaviors: Behaviors) -> str:
    """Why nothing was left, with an example of the commonest mistakes."""
    if not dropped:
        return "the file has a header and no rows"
    counted = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    worst = max(dropped, key=lambda reason: dropped[reason])
    first = checked.filter(pl.col("reason") == worst).head(1)
    hints = {
        "malformed": "lines are not JSON objects of plain values",
        "unknown_behavior": f"{_quoted(first, 'raw_behavior')} is none of {', '.join(behaviors.names)} or their aliases",
        "missing_item": "these behaviours need an item_id",
        "bad_timestamp": f"{_quoted(first, 'raw_timestamp')} does not lie between 1990 and 2100; check the unit",
    }
    return f"{counted}; {hints[worst]}" if worst in hints else counted


def _quoted(first: pl.DataFrame, column: str) -> str:
    return repr(first[column].item()) if first.height else "it"


# --- choosing a mapping ---------------------------------------------------------------------------------------------


@cache
def _ready() -> dict[str, _Mapping]:
    folder = resources.files(__package__).joinpath("formats")
    files = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name: _parse_mapping(files[name].read_text("utf-8")) for name in sorted(files)}


def _parse_mapping(text: str) -> _Mapping:
    """Raises ValueError (of which TOMLDecodeError is one) or msgspec.ValidationError."""
    mapping = msgspec.convert(tomllib.loads(text), _Mapping)
    missing = [name for name in ("user_id", "timestamp") if not mapping.columns.get(name)]
    if not mapping.columns.get("behavior") and mapping.constant_behavior is None:
        missing.append("behavior (or constant_behavior)")
    if missing:
        raise ValueError(f"[columns] lacks {', '.join(missing)}")
    if mapping.separator is not None and len(mapping.separator.encode()) != 1:
        raise ValueError(f"separator must be one ASCII character, not {mapping.separator!r}")
    return mapping


def _choose(source: _Source, name: str, mapping: Path | None) -> tuple[str, _Mapping]:
    if mapping is not None:
        return mapping.stem, _load_mapping(mapping)
    if name == "auto":
        return _detect(source)
    if name not in _ready():
        raise LogError(f"{name!r} is not a log format; choose one of {_listed()}, or give a mapping file")
    return name, _ready()[name]


def _load_mapping(path: Path) -> _Mapping:
    try:
        return _parse_mapping(path.read_text("utf-8"))
    except OSError as error:
        raise LogError(f"mapping {path}: {error.strerror or error}") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise LogError(f"mapping {path}: {_line(error)}") from None


def _detect(source: _Source) -> tuple[str, _Mapping]:
    """The ready format with the longest header that the file has, or one whose `first_line` fits."""
    fits = {name: _fit(source, mapping) for name, mapping in _ready().items()}
    name = max(fits, key=lambda candidate: fits[candidate])
    if not fits[name]:
        raise LogError(
            f"{source.path}: not a known log format (it begins with {source.first_line[:80]!r}); "
            f"choose one of {_listed()}, or give a mapping file"
        )
    return name, _ready()[name]


def _fit(source: _Source, mapping: _Mapping) -> int:
    if mapping.first_line is not None:
        return int(source.container == "csv" and re.fullmatch(mapping.first_line, source.first_line) is not None)
    return len(mapping.header) if set(mapping.header) <= set(source.header) else 0


def _listed() -> str:
    return ", ".join(_ready())


# --- opening a file -------------------------------------------------------------------------------------------------


def _open(path: Path) -> _Source:
    data = _bytes(path)
    if data.startswith(b"PAR1"):
        with _one_line(path):
            header = list(pl.read_parquet_schema(path))
            return _Source(path, "parquet", b"", ",".join(header), "", header)
    _require_text(path, data)
    first = data[: data.find(b"\n")] if b"\n" in data else data
    line = first.decode().rstrip("\r")
    if data.lstrip()[:1] == b"{":
        return _Source(path, "jsonl", data, line, "", _keys(data))
    separator = max(",\t;|", key=line.count)
    return _Source(path, "csv", data, line, separator, _fields(line, separator))


def _bytes(path: Path) -> bytes:
    """The whole file, gunzipped where it is gzip; only the first bytes of Parquet."""
    try:
        with path.open("rb") as file:
            data = file.read(4)
            data += b"" if data == b"PAR1" else file.read()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif path.suffix == ".gz" and data:
            raise LogError(f"{path}: not a gzip file in spite of its name; rename it or fetch it again")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise LogError(f"{path}: the gzip data is damaged ({error}); fetch it again") from None
    except FileNotFoundError:
        raise LogError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise LogError(f"{path}: a directory; name the log files in it") from None
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or error}") from None
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if not data.strip():
        raise LogError(f"{path}: the file is empty")
    return data


def _require_text(path: Path, data: bytes) -> None:
    try:
        if b"\0" in data[:_CHUNK]:
            raise LogError(f"{path}: binary data, neither UTF-8 text nor Parquet; {_wanted()}")
        data.decode()
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None


def _wanted() -> str:
    return "give CSV, TSV or JSON lines (plain or .gz), or Parquet"


def _fields(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def _keys(data: bytes) -> list[str]:
    """The keys seen in the first twenty lines of JSON."""
    keys: dict[str, None] = {}
    for line in data[:_CHUNK].splitlines()[:20]:
        try:
            keys.update(dict.fromkeys(msgspec.json.decode(line, type=dict[str, msgspec.Raw])))
        except msgspec.DecodeError:
            continue
    return list(keys)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Whatever polars says about a file becomes one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise LogError(f"{path}: cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- file → rows ----------------------------------------------------------------------------------------------------


def _rows(source: _Source, mapping: _Mapping) -> _Raw:
    if mapping.container not in (None, source.container):
        raise LogError(f"{source.path}: the format wants {mapping.container}, but the file is {source.container}")
    with _one_line(source.path):
        if source.container == "parquet":
            wanted = set(source.header if mapping.drop_duplicates else _wanted_columns(mapping))
            return _Raw(pl.read_parquet(source.path, columns=[name for name in source.header if name in wanted]))
        return _csv_rows(source, mapping) if source.container == "csv" else _json_rows(source, mapping)


def _csv_rows(source: _Source, mapping: _Mapping) -> _Raw:
    """Every column as text; empty fields are ""."""
    separator = mapping.separator or source.separator
    names = _fields(source.first_line, separator)
    if mapping.column_names and len(names) != len(mapping.column_names):
        raise LogError(
            f"{source.path}: {len(names)} columns, expected {len(mapping.column_names)}; check the separator"
        )
    data, malformed = _whole_lines(source.data, separator, len(names))
    if not data:
        return _Raw(pl.DataFrame(schema=dict.fromkeys(mapping.column_names or names, pl.String())), malformed)
    frame = pl.read_csv(
        data,
        separator=separator,
        has_header=not mapping.column_names,
        schema=dict.fromkeys(mapping.column_names, pl.String()) or None,
        infer_schema=False,
        empty_string_is_null=False,
        extra_columns="ignore",
        missing_columns="insert",
    )
    return _Raw(frame, malformed)


def _whole_lines(data: bytes, separator: str, width: int) -> tuple[bytes, int]:
    """Without the last line where that was cut off: no newline behind it, and fields or a closing quote missing."""
    cut = data.rfind(b"\n") + 1
    last = data[cut:].decode()
    if not last or not cut:
        return data, 0
    torn = len(_fields(last, separator)) < width or last.count('"') % 2 == 1
    return (data[:cut], 1) if torn else (data, 0)


def _json_rows(source: _Source, mapping: _Mapping) -> _Raw:
    """The mapped keys of each line, as text; null where a line has no such key."""
    names = _wanted_columns(mapping)
    decoder = msgspec.json.Decoder(_json_row(names))
    columns: list[list[str | None]] = [[] for _ in names]
    malformed = 0
    for line in source.data.splitlines():
        try:
            values = msgspec.structs.astuple(decoder.decode(line))
        except msgspec.DecodeError:
            malformed += bool(line.strip())
            continue
        for column, value in zip(columns, values, strict=True):
            column.append(value if value is None or type(value) is str else str(value))
    data = dict(zip(names, columns, strict=True))
    return _Raw(pl.DataFrame(data, schema=dict.fromkeys(names, pl.String())), malformed)


def _json_row(names: Sequence[str]) -> type[msgspec.Struct]:
    slots = [f"field_{number}" for number in range(len(names))]
    fields = [(slot, str | int | float | None, None) for slot in slots]
    return msgspec.defstruct("Row", fields, rename=dict(zip(slots, names, strict=True)), gc=False)


def _wanted_columns(mapping: _Mapping) -> list[str]:
    names = [name for field in mapping.columns for name in mapping.sources(field)]
    return list(dict.fromkeys(names + ([mapping.order] if mapping.order else [])))


# --- rows → checked rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """All rows of one file with the fields of an event, and the `reason` to drop the row or null."""

    frame: pl.DataFrame
    malformed: int


def _read(source: _Source, mapping: _Mapping, behaviors: Behaviors, latest: int) -> _Table:
    raw = _rows(source, mapping)
    _require_columns(source, mapping, raw.frame)
    with _one_line(source.path):
        rows = _project(raw.frame, mapping, behaviors, latest)
        if mapping.order is not None:
            rows = _fill_times(rows)
        reason = _reason(behaviors.about_item)
        frame = rows.select(pl.exclude("order", "duplicate"), reason.alias("reason"))
    return _Table(frame, raw.malformed)


def _require_columns(source: _Source, mapping: _Mapping, frame: pl.DataFrame) -> None:
    missing = [
        " or ".join(mapping.sources(field))
        for field in mapping.columns
        if field not in mapping.optional and not set(mapping.sources(field)) & _present(source, frame)
    ]
    if mapping.order is not None and mapping.order not in _present(source, frame):
        missing.append(mapping.order)
    if missing:
        found = ", ".join(frame.columns if source.container == "csv" else source.header)
        raise LogError(f"{source.path}: missing column {', '.join(missing)}; the file has {found}")


def _present(source: _Source, frame: pl.DataFrame) -> set[str]:
    """The columns that the file has; for JSON lines those with a value in some row (or all, if no row could be read)."""
    if source.container != "jsonl" or frame.is_empty():
        return set(frame.columns)
    return {name for name in frame.columns if frame[name].null_count() < frame.height}


def _project(raw: pl.DataFrame, mapping: _Mapping, behaviors: Behaviors, latest: int) -> pl.DataFrame:
    """The fields of an event, row by row; nothing dropped yet."""
    behavior = _behavior_text(raw, mapping)
    times = _first(raw, mapping.sources("timestamp"))
    columns: dict[str, pl.Series] = {field: _as_text(_first(raw, mapping.sources(field))) for field in _TEXT}
    return pl.DataFrame(
        columns
        | {
            "price": _price(_first(raw, mapping.sources("price"))),
            "raw_behavior": behavior,
            "behavior": _resolve(behavior, mapping, behaviors),
            "raw_timestamp": _as_text(times),
            "timestamp": _within(_milliseconds(times, mapping), latest),
            "order": _number(_first(raw, [mapping.order] if mapping.order else [])),
            "duplicate": _duplicate(raw, mapping),
        }
    )


def _duplicate(raw: pl.DataFrame, mapping: _Mapping) -> pl.Series:
    """True for a row that equals an earlier one in every column, where the mapping drops such rows."""
    if not mapping.drop_duplicates:
        return pl.repeat(False, raw.height, eager=True)
    return ~raw.select(pl.struct(pl.all()).is_first_distinct()).to_series()


def _behavior_text(raw: pl.DataFrame, mapping: _Mapping) -> pl.Series:
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
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        column = whole.cast(pl.String) if (whole == column).all() else column
    text = column.cast(pl.String, strict=False)
    return text.set(text == "", None)


def _resolve(behavior: pl.Series, mapping: _Mapping, behaviors: Behaviors) -> pl.Series:
    """Canonical names by one look-up per distinct name; null where the vocabulary does not know it."""
    names = behavior.drop_nulls().unique().to_list()
    meanings = [behaviors.resolve(mapping.behaviors.get(name, name)) for name in names]
    return behavior.replace_strict(names, meanings, default=None, return_dtype=pl.String)


def _price(column: pl.Series) -> pl.Series:
    price = column.cast(pl.Float64, strict=False)
    return price.set(~price.is_finite(), None)


def _number(column: pl.Series) -> pl.Series:
    return column.cast(pl.Float64, strict=False)


def _milliseconds(times: pl.Series, mapping: _Mapping) -> pl.Series:
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

    Times never go back inside a user, so that sorting by time keeps the order.
    """
    first_row = pl.int_range(pl.len()).min().over("user_id")
    ordered = rows.sort(first_row, "order", maintain_order=True, nulls_last=True)
    known = pl.col("timestamp")
    filled = known.interpolate().forward_fill().backward_fill().round().cast(pl.Int64).cum_max().over("user_id")
    unreadable = known.is_null() & pl.col("raw_timestamp").is_not_null()
    return ordered.with_columns(timestamp=pl.when(~unreadable).then(filled))


def _reason(about_item: frozenset[str]) -> pl.Expr:
    """The first of `REASONS` that applies to a row, else null."""
    checks = {
        "duplicate": pl.col("duplicate"),
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
