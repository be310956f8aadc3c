"""What is written about items: a catalogue file, or columns of the log itself.

A catalogue is CSV, TSV, JSON lines or Parquet with the columns `item_id` and `text`, and `category` and `price` if it likes. Dots and
underscores, which shops put between the words of a category, become spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from stream_app.log_formats import LogError, LogMapping, choose, open_log, read_rows


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """Item → text, and item → category as far as that is told."""

    texts: dict[str, str]
    catalogue: bool  # whether these are all items that there are
    categories: dict[str, str] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)


def read_texts(source: str, logs: Sequence[Path], *, format: str, mapping: Path | None) -> ItemTexts:  # noqa: A002
    """`source` is a catalogue file, or columns of the logs, separated by commas. Raises LogError."""
    if Path(source).is_file():
        return _catalogue(Path(source))
    columns = source.split(",")
    texts: dict[str, str] = {}
    for path in logs:
        with open_log(path) as log:
            _, chosen = choose(log, format, mapping)
            _require(path, columns, chosen.column_names or log.header, f"no file {source}, and ")
            for frame in _frames(path, chosen, chosen.sources("item_id"), columns):
                texts = {**dict(_pairs(frame)), **texts}
    if not texts:
        raise LogError(f"no item has a text in {source}; name other columns, or a catalogue file")
    return ItemTexts(texts, catalogue=False)


def _catalogue(path: Path) -> ItemTexts:
    with open_log(path) as file:
        header = file.header
    _require(path, ["item_id", "text"], header, "a catalogue has the columns item_id and text: ")
    found = ItemTexts({}, catalogue=True)
    plain = LogMapping(columns={})
    for frame in _frames(path, plain, ["item_id"], ["text"]):
        found.texts.update(_pairs(frame))
    if "category" in header:
        for frame in _frames(path, plain, ["item_id"], ["category"], words=False):
            found.categories.update(_pairs(frame))
    if "price" in header:
        for frame in _frames(path, plain, ["item_id"], ["price"], words=False):
            numbers = frame.with_columns(pl.col("text").cast(pl.Float64, strict=False)).drop_nulls()
            found.prices.update(_pairs(numbers))
    if not found.texts:
        raise LogError(f"{path}: no item has a text")
    return found


def _require(path: Path, wanted: Iterable[str], header: Sequence[str], why: str) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        raise LogError(f"{why}{path} has no column {', '.join(missing)}; it has {', '.join(header)}")


def _frames(
    path: Path, mapping: LogMapping, items: Sequence[str], columns: Sequence[str], *, words: bool = True
) -> Iterable[pl.DataFrame]:
    """(item, text) of the rows that have both, the first one of each item, some rows at a time."""
    wanted = msgspec.structs.replace(
        mapping, columns={"item_id": list(items), "category": list(columns)}, order=None, drop_duplicates=False
    )
    with open_log(path) as file:
        for rows in read_rows(file, wanted):
            present = [name for name in items if name in rows.frame.columns]
            texts = [pl.col(name).cast(pl.String).fill_null("") for name in columns if name in rows.frame.columns]
            frame = rows.frame.select(
                item=pl.coalesce(pl.col(present).cast(pl.String)),
                text=pl.concat_str(texts, separator=" ").str.strip_chars(),
            ).filter(pl.col("item").is_not_null() & (pl.col("item") != "") & (pl.col("text") != ""))
            if words:
                frame = frame.with_columns(pl.col("text").str.replace_all(r"[._]+", " "))
            yield frame.unique("item", keep="first", maintain_order=True)


def _pairs(frame: pl.DataFrame) -> Iterable[tuple[str, Any]]:
    return zip(frame["item"], frame["text"], strict=True)
