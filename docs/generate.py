"""Writes the tables of `operations.md` that are made from the code: `python docs/generate.py`.

They stand between `<!-- begin NAME -->` and `<!-- end NAME -->`; `tests/test_docs.py` fails when they are stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from stream_app.metrics import BulkHistogram, WorkerMetrics
from stream_app.settings import Settings

PAGE = Path(__file__).with_name("operations.md")


def settings_table() -> str:
    """Every setting: name, variable, what it may be, default, what it does."""
    rows = ["| setting | environment | value | default | |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        value = f"{_type(field.annotation)}{_bounds(field)}"
        rows.append(f"| `{name}` | `NEXTMOVE_{name.upper()}` | {value} | {_default(field)} | {field.description} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Every metric of our own: name as exposed, type, labels, what it says."""
    rows = ["| metric | type | labels | |", "|---|---|---|---|"]
    for metric in _metrics():
        kind, name = getattr(metric, "_type", "histogram"), metric._name  # noqa: SLF001  # nothing else tells one without samples
        exposed = {"counter": f"{name}_total", "info": f"{name}_info"}.get(kind, name)
        labels = (
            "`version`, `device`"
            if kind == "info"
            else ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))
        )
        rows.append(f"| `{exposed}` | {kind} | {labels} | {metric._documentation} |")  # noqa: SLF001
    return "\n".join(rows)


TABLES = {"settings": settings_table, "metrics": metrics_table}


def fill(page: str) -> str:
    """The page with its tables as the code has them now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs one {begin} and one {end}")
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        page = pattern.sub(f"{begin}\n{table()}\n{end}".replace("\\", r"\\"), page)
    return page


def _metrics() -> Iterator[MetricWrapperBase | BulkHistogram]:
    metrics = WorkerMetrics(model_version="", device="", chunk_records=1)
    kinds = (MetricWrapperBase, BulkHistogram)
    return (value for value in vars(metrics.registry)["_collector_to_names"] if isinstance(value, kinds))


def _type(annotation: Any) -> str:
    kind = get_origin(annotation)
    if kind is Annotated:
        return _type(get_args(annotation)[0])
    if kind is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if kind in (Union, UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path", SecretStr: "secret"}
    return names[annotation]


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{signs[key]} {value}" for bound in field.metadata for key, value in _limits(bound) if key in signs]
    return f", {', '.join(found)}" if found else ""


def _limits(bound: Any) -> Iterator[tuple[str, Any]]:
    return ((key, getattr(bound, key)) for key in ("ge", "gt", "le", "lt") if getattr(bound, key, None) is not None)


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "–"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    before = PAGE.read_text("utf-8")
    after = fill(before)
    PAGE.write_text(after, "utf-8")
    sys.stdout.write(f"{PAGE}: {'as it was' if after == before else 'written'}\n")
