"""Where and with what a benchmark ran: machine, versions, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.stream.brokers import kafka_version
from benchmarks.stream.paths import PEERS_PYTHON
from benchmarks.stream.programs import ROOT

OURS = ("faust-streaming", "aiokafka", "confluent-kafka", "msgspec", "orjson", "torch", "numpy")
THEIRS = ("bytewax", "quixstreams", "confluent-kafka")  # in the interpreter of the peers


def describe() -> dict[str, object]:
    """For the JSON of a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "stream_app", "model", "benchmarks")),
        "machine": {
            "cpu": _field(Path("/proc/cpuinfo"), "model name"),
            "cores": os.cpu_count(),
            "memory_gb": round(int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) * 1024 / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in OURS},
            "kafka": kafka_version(),
            **_peers(),
        },
    }


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


def _peers() -> dict[str, str]:
    if not PEERS_PYTHON.exists():
        return {}
    code = (
        f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {THEIRS}}}))"
    )
    done = subprocess.run([PEERS_PYTHON, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(f"{PEERS_PYTHON} lacks one of {', '.join(THEIRS)}: run `make benchmark-setup`\n")
        return {}
    found = json.loads(done.stdout)
    return {name if name != "confluent-kafka" else "confluent-kafka of the peers": found[name] for name in THEIRS}
