"""The many shapes of logs: a file and a mapping in, rows under the log's own column names out, some at a time.

A *mapping* (TOML) says how a log's columns become the fields of an event; the ready ones lie in `formats/`, and the header
of a file tells which one fits. What the rows mean is `event_logs.py`'s business.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Literal

import msgspec
import polars as pl

Field = Literal["user_id", "timestamp", "behavior", "item_id", "category", "price", "event_id", "session_id"]
Container = Literal["csv", "parquet", "jsonl"]

_SNIFFED = 65_536  # bytes from which the kind of a file is told
_BLOCK = 4 << 20  # bytes of text that become rows at once: their columns of text take ten times that
_LONGEST = 16 * _BLOCK  # text without the end of a row
_PARQUET_ROWS = 1 << 17


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
    """One open file: `head` is the beginning of its text, `rest` what follows, both unpacked and both empty for Parquet.

    `header` is its best guess at names.
    """

    path: Path
    container: Container
    head: bytes
    rest: IO[bytes]
    first_line: str
    separator: str
    header: list[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a file under the log's own column names, and how many rows between them could not be read."""

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


@contextmanager
def open_log(path: Path) -> Iterator[LogFile]:
    """Open a file, to be unpacked as it is read, and tell what it is by its beginning. Raises LogError."""
    with _complaints(path):
        raw = path.open("rb", 1 << 20)  # opened once: it may be a pipe
    with raw:
        with _complaints(path):
            magic = raw.peek(4)[:4]  # type: ignore[attr-defined]  # a BufferedReader, which `open` does not say
            packed = magic.startswith(b"\x1f\x8b")
            if path.suffix == ".gz" and magic and not packed:
                raise LogError(f"{path}: not a gzip file in spite of its name; rename it or fetch it again")
        file: IO[bytes]
        with gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as file:  # type: ignore[assignment]  # reads alike
            yield _parquet(path, file) if magic == b"PAR1" else _text(path, file)


def _parquet(path: Path, file: IO[bytes]) -> LogFile:
    with one_line(path):
        header = list(pl.read_parquet_schema(path))
    return LogFile(path, "parquet", b"", file, ",".join(header), "", header)


def _text(path: Path, file: IO[bytes]) -> LogFile:
    with _complaints(path):
        head = file.read(_SNIFFED)
        while b"\n" not in head and (more := file.read(_SNIFFED)):
            head += more
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if not head.strip():
        raise LogError(f"{path}: the file is empty")
    if b"\0" in head[:_SNIFFED]:
        raise LogError(f"{path}: binary data, neither UTF-8 text nor Parquet; {_wanted()}")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a character
        line = head.partition(b"\n")[0].decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise _not_text(path, error.start) from None
    if head.lstrip()[:1] == b"{":
        return LogFile(path, "jsonl", head, file, line, "", _keys(head))
    separator = max(",\t;|", key=line.count)
    return LogFile(path, "csv", head, file, line, separator, _fields(line, separator))


def _not_text(path: Path, at: int) -> LogError:
    return LogError(f"{path}: not UTF-8 text (byte {at}); convert it to UTF-8")


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes one line."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise LogError(f"{path}: the gzip data is damaged ({error}); fetch it again") from None
    except FileNotFoundError:
        raise LogError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise LogError(f"{path}: a directory; name the log files in it") from None
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or error}") from None


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole lines of a file, with whatever follows the last newline where it is the `last` block."""

    data: bytes
    first: bool
    last: bool


def _blocks(source: LogFile) -> Iterator[_Block]:
    """The text of a file in blocks that end between two rows. Raises LogError for what is no UTF-8."""
    kept, at, first = source.head, 0, True
    while True:
        with _complaints(source.path):
            more = source.rest.read(_BLOCK)
        kept += more
        cut = _end_of_rows(kept, quotes=source.container == "csv") if more else len(kept)
        try:
            kept[:cut].decode()
        except UnicodeDecodeError as error:
            raise _not_text(source.path, at + error.start) from None
        if cut or not more:
            yield _Block(kept[:cut], first, not more)
            kept, at, first = kept[cut:], at + cut, False
        if not more:
            return


def _end_of_rows(data: bytes, *, quotes: bool) -> int:
    """Behind the last newline, outside `quotes` where they may hold one; 0 where there is none.

    A quote that is not closed for very long is a character like any other.
    """
    cut = data.rfind(b"\n") + 1
    if not quotes or len(data) > _LONGEST:
        return cut
    while cut and data.count(b'"', 0, cut) % 2:
        cut = data.rfind(b"\n", 0, data.rfind(b'"', 0, cut)) + 1
    return cut


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


def read_rows(source: LogFile, mapping: LogMapping) -> Iterator[Rows]:
    """The rows of a file in order, some at a time, at least once; raises LogError.

    They have at least the columns that the mapping names and the file has, always the same ones and of the same types.
    """
    if mapping.container not in (None, source.container):
        raise LogError(f"{source.path}: the format wants {mapping.container}, but the file is {source.container}")
    read = {"csv": _csv_rows, "jsonl": _json_rows, "parquet": _parquet_rows}[source.container]
    with one_line(source.path):
        yield from read(source, mapping)


def _parquet_rows(source: LogFile, mapping: LogMapping) -> Iterator[Rows]:
    wanted = set(source.header if mapping.drop_duplicates else _wanted_columns(mapping))
    table = pl.scan_parquet(source.path, glob=False)
    total = table.select(pl.len()).collect().item()
    table = table.select(name for name in source.header if name in wanted)
    for begin in range(0, max(total, 1), _PARQUET_ROWS):
        yield Rows(table.slice(begin, _PARQUET_ROWS).collect())


def _csv_rows(source: LogFile, mapping: LogMapping) -> Iterator[Rows]:
    """Every column as text; empty fields are ""."""
    separator = mapping.separator or source.separator
    names = _fields(source.first_line, separator)
    if mapping.column_names and len(names) != len(mapping.column_names):
        raise LogError(
            f"{source.path}: {len(names)} columns, expected {len(mapping.column_names)}; check the separator"
        )
    header = b"" if mapping.column_names else source.first_line.encode() + b"\n"
    for block in _blocks(source):
        data, malformed = block.data, 0
        if block.last:
            data, malformed = _whole_lines(data, separator, len(names), alone=block.first)
        yield Rows(_csv_frame(data if block.first else header + data, separator, mapping, names), malformed)


def _csv_frame(data: bytes, separator: str, mapping: LogMapping, names: Sequence[str]) -> pl.DataFrame:
    """Rows of text that begins with the header, where the format has one."""
    if not data:
        return pl.DataFrame(schema=dict.fromkeys(mapping.column_names or names, pl.String()))
    return pl.read_csv(
        data,
        separator=separator,
        has_header=not mapping.column_names,
        schema=dict.fromkeys(mapping.column_names, pl.String()) or None,
        infer_schema=False,
        empty_string_is_null=False,
        extra_columns="ignore",
        missing_columns="insert",
    )


def _whole_lines(data: bytes, separator: str, width: int, *, alone: bool) -> tuple[bytes, int]:
    """Without the last line where that was cut off: no newline behind it, and fields or a closing quote missing.

    A line `alone` in its file is left as it is.
    """
    cut = data.rfind(b"\n") + 1
    last = data[cut:].decode()
    if not last or (alone and not cut):
        return data, 0
    torn = len(_fields(last, separator)) < width or last.count('"') % 2 == 1
    return (data[:cut], 1) if torn else (data, 0)


def _json_rows(source: LogFile, mapping: LogMapping) -> Iterator[Rows]:
    """The mapped keys of each line, as text; null where a line has no such key."""
    names = _wanted_columns(mapping)
    decoder = msgspec.json.Decoder(_json_row(names))
    for block in _blocks(source):
        columns: list[list[str | None]] = [[] for _ in names]
        malformed = 0
        for line in block.data.splitlines():
            try:
                values = msgspec.structs.astuple(decoder.decode(line))
            except msgspec.DecodeError:
                malformed += bool(line.strip())
                continue
            for column, value in zip(columns, values, strict=True):
                column.append(value if value is None or type(value) is str else str(value))
        data = dict(zip(names, columns, strict=True))
        yield Rows(pl.DataFrame(data, schema=dict.fromkeys(names, pl.String())), malformed)


def _json_row(names: Sequence[str]) -> type[msgspec.Struct]:
    slots = [f"field_{number}" for number in range(len(names))]
    fields = [(slot, str | int | float | None, None) for slot in slots]
    return msgspec.defstruct("Row", fields, rename=dict(zip(slots, names, strict=True)), gc=False)


def _wanted_columns(mapping: LogMapping) -> list[str]:
    names = [name for field in mapping.columns for name in mapping.sources(field)]
    return list(dict.fromkeys(names + ([mapping.order] if mapping.order else [])))
