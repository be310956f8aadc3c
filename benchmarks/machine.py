"""Where and with what a benchmark ran: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def describe(libraries: Iterable[str], sources: Iterable[str]) -> dict[str, object]:
    """For the JSON of a run; `sources` are the folders in which a change that is not committed matters."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", *sources)),
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) * 1024 / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in libraries}},
    }


def processor() -> str:
    """Its name, which rented machines share between generations, and on x86 what tells those apart."""
    info = Path("/proc/cpuinfo")
    name, family, model, flags = (_field(info, field) for field in ("model name", "cpu family", "model\t", "flags"))
    if "unknown" in (family, model, flags):
        return name
    return f"{name} (family {family}, model {model}, {'AVX-512' if 'avx512f' in flags.split() else 'no AVX-512'})"


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip() if done.returncode == 0 else None


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
