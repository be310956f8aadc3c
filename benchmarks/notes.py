"""What a benchmark tells of itself while it runs, and what went wrong."""

from __future__ import annotations

from rich.console import Console

failures: list[str] = []  # of this process; the report and the exit code tell of them
_console = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Tell whoever watches."""
    _console.print(text, markup=False, soft_wrap=True)


def failed(name: str, failure: BaseException) -> None:
    """Remember what went wrong."""
    failures.append(f"{name}: {type(failure).__name__}: {str(failure).splitlines()[0]}")
    note(f"  {name} FAILED: {failure}")


def rounded(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
