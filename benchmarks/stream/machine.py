"""What the machine's part of a stream benchmark's JSON says beside the rest: Kafka, and the peers' versions."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import machine
from benchmarks.stream.brokers import kafka_version
from benchmarks.stream.paths import PEERS_PYTHON

OURS = ("faust-streaming", "aiokafka", "confluent-kafka", "msgspec", "orjson", "torch", "numpy")
THEIRS = ("bytewax", "quixstreams", "confluent-kafka")  # in the interpreter of the peers


def describe() -> dict[str, object]:
    """For the JSON of a run."""
    about: dict[str, Any] = machine.describe(OURS, ("stream_app", "model", "benchmarks"))
    about["versions"] |= {"kafka": kafka_version(), **_peers()}
    return about


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
