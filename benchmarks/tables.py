"""Tables of reports: rows as Markdown, by columns of a head and a cell each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]  # head and cell


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Markdown; the first column is text, the others are numbers."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    heads = line(head for head, _ in columns)
    rule = line("---" if number == 0 else "--:" for number in range(len(columns)))
    return "\n".join([heads, rule, *(line(cell(row) for _, cell in columns) for row in rows)])


def when(result: Mapping[str, Any], section: str) -> str:
    """Day and commit of a section's measurement."""
    about = result.get("taken", {}).get(section)
    return f"({about['date'][:10]}, {(about['commit'] or 'unknown')[:8]})" if about else ""


def text(name: str) -> Callable[[Row], str]:
    """A cell as it is."""
    return lambda row: str(row[name])


def number(name: str, digits: int = 0) -> Callable[[Row], str]:
    """A cell rounded; a dash where there is no figure."""
    return lambda row: "–" if row.get(name) is None else f"{row[name]:,.{digits}f}"


def spread(name: str, digits: int = 0) -> Callable[[Row], str]:
    """Median, and in brackets the least and the most of several runs."""

    def cell(row: Row) -> str:
        least, most = row[f"{name}_min"], row[f"{name}_max"]
        both = f" ({least:,.{digits}f} … {most:,.{digits}f})" if row["runs"] > 1 else ""
        return f"{row[name]:,.{digits}f}{both}"

    return cell


def machine_and_versions(about: Mapping[str, Any]) -> str:
    """One paragraph about where and with what a section was measured."""
    machine, versions = about["machine"], about["versions"]
    changed = " with changes not committed" if about["uncommitted_changes"] else ""
    return (
        f"{about['date']}, commit `{(about['commit'] or 'unknown')[:12]}`{changed}. {machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gb']:g} GB, {machine['system']}. "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + "."
    )
