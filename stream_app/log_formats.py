"""The many shapes of logs: a file and a mapping in, rows under the log's own column names out.

A *mapping* (TOML) says how a log's columns become the fields of an event; the ready ones lie in `formats/`, and the header
of a file tells which one fits. What the rows mean is `event_logs.py`'s business.
"""

from __future__ import annotations

import csv
import gzip
import re
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl

Field = Literal["user_id", "timestamp", "behavior", "item_id", "category", "price", "event_id", "session_id"]
Container = Literal["csv", "parquet", "jsonl"]

_SNIFFED = 65_536  # bytes from which the kind of a file is told


class LogError(Exception):
    """A log cannot be read or written; the message is one line: the file, what is wrong, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message))


class LogMapping(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
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
class LogFile:
    """One file, unpacked: `data` is empty for Parquet, which is read from disk; `header` is its best guess at names."""

    path: Path
    container: Container
    data: bytes
    first_line: str
    separator: str
    header: list[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one file under the log's own column names, and the number of rows that could not be read."""

    frame: pl.DataFrame
    malformed: int = 0


def formats() -> dict[str, str]:
    """The ready-made formats: name → one line of description."""
    return {name: mapping.description for name, mapping in _ready().items()}


# --- choosing a mapping ---------------------------------------------------------------------------------------------


@cache
def _ready() -> dict[str, LogMapping]:
    folder = resources.files(__package__).joinpath("formats")
    files = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name: _parse_mapping(files[name].read_text("utf-8")) for name in sorted(files)}


def _parse_mapping(text: str) -> LogMapping:
    """Raises ValueError (of which TOMLDecodeError is one) or msgspec.ValidationError."""
    mapping = msgspec.convert(tomllib.loads(text), LogMapping)
    missing = [name for name in ("user_id", "timestamp") if not mapping.columns.get(name)]
    if not mapping.columns.get("behavior") and mapping.constant_behavior is None:
        missing.append("behavior (or constant_behavior)")
    if missing:
        raise ValueError(f"[columns] lacks {', '.join(missing)}")
    if mapping.separator is not None and len(mapping.separator.encode()) != 1:
        raise ValueError(f"separator must be one ASCII character, not {mapping.separator!r}")
    return mapping


def choose(source: LogFile, name: str, mapping: Path | None) -> tuple[str, LogMapping]:
    """A mapping and its name: the file `mapping` if given, else the ready format `name`, which may be "auto"."""
    if mapping is not None:
        return mapping.stem, _load_mapping(mapping)
    if name == "auto":
        return _detect(source)
    if name not in _ready():
        raise LogError(f"{name!r} is not a log format; choose one of {_listed()}, or give a mapping file")
    return name, _ready()[name]


def _load_mapping(path: Path) -> LogMapping:
    try:
        return _parse_mapping(path.read_text("utf-8"))
    except OSError as error:
        raise LogError(f"mapping {path}: {error.strerror or error}") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise LogError(f"mapping {path}: {_line(error)}") from None


def _detect(source: LogFile) -> tuple[str, LogMapping]:
    """The ready format with the longest header that the file has, or one whose `first_line` fits."""
    fits = {name: _fit(source, mapping) for name, mapping in _ready().items()}
    name = max(fits, key=lambda candidate: fits[candidate])
    if not fits[name]:
        raise LogError(
            f"{source.path}: not a known log format (it begins with {source.first_line[:80]!r}); "
            f"choose one of {_listed()}, or give a mapping file"
        )
    return name, _ready()[name]


def _fit(source: LogFile, mapping: LogMapping) -> int:
    if mapping.first_line is not None:
        return int(source.container == "csv" and re.fullmatch(mapping.first_line, source.first_line) is not None)
    return len(mapping.header) if set(mapping.header) <= set(source.header) else 0


def _listed() -> str:
    return ", ".join(_ready())


# --- opening a file -------------------------------------------------------------------------------------------------


def open_log(path: Path) -> LogFile:
    """Read and unpack a file, and tell what it is by its content. Raises LogError."""
    data = _bytes(path)
    if data.startswith(b"PAR1"):
        with one_line(path):
            header = list(pl.read_parquet_schema(path))
            return LogFile(path, "parquet", b"", ",".join(header), "", header)
    _require_text(path, data)
    first = data[: data.find(b"\n")] if b"\n" in data else data
    line = first.decode().rstrip("\r")
    if data.lstrip()[:1] == b"{":
        return LogFile(path, "jsonl", data, line, "", _keys(data))
    separator = max(",\t;|", key=line.count)
    return LogFile(path, "csv", data, line, separator, _fields(line, separator))


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
        if b"\0" in data[:_SNIFFED]:
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
    for line in data[:_SNIFFED].splitlines()[:20]:
        try:
            keys.update(dict.fromkeys(msgspec.json.decode(line, type=dict[str, msgspec.Raw])))
        except msgspec.DecodeError:
            continue
    return list(keys)


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Whatever polars says about a file becomes one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise LogError(f"{path}: cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- file → rows ----------------------------------------------------------------------------------------------------


def read_rows(source: LogFile, mapping: LogMapping) -> Rows:
    """The rows of a file, with at least the columns that the mapping names and the file has. Raises LogError."""
    if mapping.container not in (None, source.container):
        raise LogError(f"{source.path}: the format wants {mapping.container}, but the file is {source.container}")
    with one_line(source.path):
        if source.container == "parquet":
            wanted = set(source.header if mapping.drop_duplicates else _wanted_columns(mapping))
            return Rows(pl.read_parquet(source.path, columns=[name for name in source.header if name in wanted]))
        return _csv_rows(source, mapping) if source.container == "csv" else _json_rows(source, mapping)


def _csv_rows(source: LogFile, mapping: LogMapping) -> Rows:
    """Every column as text; empty fields are ""."""
    separator = mapping.separator or source.separator
    names = _fields(source.first_line, separator)
    if mapping.column_names and len(names) != len(mapping.column_names):
        raise LogError(
            f"{source.path}: {len(names)} columns, expected {len(mapping.column_names)}; check the separator"
        )
    data, malformed = _whole_lines(source.data, separator, len(names))
    if not data:
        return Rows(pl.DataFrame(schema=dict.fromkeys(mapping.column_names or names, pl.String())), malformed)
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
    return Rows(frame, malformed)


def _whole_lines(data: bytes, separator: str, width: int) -> tuple[bytes, int]:
    """Without the last line where that was cut off: no newline behind it, and fields or a closing quote missing."""
    cut = data.rfind(b"\n") + 1
    last = data[cut:].decode()
    if not last or not cut:
        return data, 0
    torn = len(_fields(last, separator)) < width or last.count('"') % 2 == 1
    return (data[:cut], 1) if torn else (data, 0)


def _json_rows(source: LogFile, mapping: LogMapping) -> Rows:
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
    return Rows(pl.DataFrame(data, schema=dict.fromkeys(names, pl.String())), malformed)


def _json_row(names: Sequence[str]) -> type[msgspec.Struct]:
    slots = [f"field_{number}" for number in range(len(names))]
    fields = [(slot, str | int | float | None, None) for slot in slots]
    return msgspec.defstruct("Row", fields, rename=dict(zip(slots, names, strict=True)), gc=False)


def _wanted_columns(mapping: LogMapping) -> list[str]:
    names = [name for field in mapping.columns for name in mapping.sources(field)]
    return list(dict.fromkeys(names + ([mapping.order] if mapping.order else [])))
