"""Programs that are forked are what `python -m` would run."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.fork_server import Forked, ForkServer
from tests.processes import FORKS

TELLS = """
import atexit, json, os, signal, sys, threading, time
atexit.register(print, "the end", flush=True)
print(json.dumps({
    "name": __name__, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ),
    "warnings": sys.warnoptions, "threads": threading.active_count(),
    "files": sorted(int(each) for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")),
    "signals": [str(signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)],
}))
print("worse", file=sys.stderr)
threading.Thread(target=lambda: (time.sleep(.3), print("a thread", flush=True))).start()
sys.exit(len(sys.argv))
"""
STANDS_STILL = "import time\nprint('here', flush=True)\ntime.sleep(60)"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "tells.py").write_text(TELLS)
    (tmp_path / "stands_still.py").write_text(STANDS_STILL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(place), "LC_ALL": "C.UTF-8", **more}


def run(place: Path, *arguments: str, **more: str) -> tuple[int, dict[str, object], list[str], str]:
    with (place / "out").open("wb") as out, (place / "error").open("wb") as error:
        code = Forked(FORKS, arguments, environment(place, **more), out.fileno(), error.fileno()).wait(60)
    told, *end = (place / "out").read_text().splitlines()
    return code, json.loads(told), end, (place / "error").read_text()


def test_it_has_its_own_arguments_environment_output_and_end(place):
    code, told, end, error = run(place, "tells", "one", "two", COLOUR="green")
    assert code == len(["tells", "one", "two"])
    assert (end, error) == (["a thread", "the end"], "worse\n")
    real = subprocess.run(
        [sys.executable, "-m", "tells", "one", "two"], capture_output=True, text=True, check=False,
        env=environment(place, COLOUR="green", PYTHONWARNINGS="default"),
    )  # fmt: skip
    assert real.returncode == code
    other, *end_of_other = real.stdout.splitlines()
    assert (end_of_other, real.stderr) == (end, error)
    other = json.loads(other)
    for key in ("name", "arguments", "folder", "warnings", "threads", "files", "signals"):
        assert told[key] == other[key], key
    assert other["environment"] == {**told["environment"], "PYTHONWARNINGS": "default"}


def test_those_that_run_at_once_know_nothing_of_each_other(place):
    with tempfile.TemporaryFile() as out:
        others = [Forked(FORKS, ("stands_still",), environment(place), out.fileno(), out.fileno()) for _ in range(2)]
        _, told, *_ = run(place, "tells")
        assert told["files"] == [0, 1, 2]
        assert [each.poll() for each in others] == [None, None]
        with pytest.raises(subprocess.TimeoutExpired):
            others[0].wait(0.01)
        others[0].kill()
        others[1].send_signal(signal.SIGTERM)
        assert [each.wait(10) for each in others] == [-signal.SIGKILL, -signal.SIGTERM]
        others[0].kill()  # it has ended


def test_a_server_that_has_ended_says_so(place):
    server = ForkServer()
    with (place / "out").open("wb") as out:
        process = Forked(server, ("stands_still",), environment(place), out.fileno(), out.fileno())
        server._process.kill()
        with pytest.raises(RuntimeError, match="has ended"):
            process.wait(60)
        os.kill(process.pid, 0)
        process.kill()  # nevertheless


def test_one_may_be_interrupted(place):
    with (place / "error").open("wb") as error:
        process = Forked(FORKS, ("stands_still",), environment(place), error.fileno(), error.fileno())
        deadline = time.monotonic() + 60
        while b"here" not in (place / "error").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
    assert b"KeyboardInterrupt" in (place / "error").read_bytes()


def test_what_it_says_at_its_end_is_no_number(place):
    (place / "refuses.py").write_text("raise SystemExit('not today')")
    with (place / "error").open("wb") as error:
        assert Forked(FORKS, ("refuses",), environment(place), error.fileno(), error.fileno()).wait(60) == 1
    assert (place / "error").read_text() == "not today\n"


def test_what_cannot_be_found_ends_as_a_program_does(place):
    with (place / "error").open("wb") as error:
        assert Forked(FORKS, ("nowhere",), environment(place), error.fileno(), error.fileno()).wait(10) == 1
    assert "No module named nowhere" in (place / "error").read_text()
