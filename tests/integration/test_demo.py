"""The demo from its first line to its last, as a newcomer runs it."""

import re
from pathlib import Path

from tests.processes import nextmove


def test_the_demo_answers_every_event(tmp_path: Path) -> None:
    log = tmp_path / "small.jsonl"
    assert nextmove("simulate", "--out", str(log), "--users", "100", "--days", "3").returncode == 0
    done = nextmove("demo", "--log", str(log), "--seconds", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = dict(re.findall(r"│ (\S.*?) +│ (.*?) +│", done.stdout.partition("Summary")[2]))
    events = len(log.read_bytes().splitlines())
    assert summary["events without an answer"] == "0"
    assert summary["dead letters"] == "none"
    played = events - int(events * 0.7)
    assert summary["predictions"] == f"{played:,}"
    assert summary["events sent"].startswith(f"{played:,} in ")
    assert "Traceback" not in done.stdout + done.stderr
