"""What commands share: errors as one line, options before the environment, and what is said beside the result."""

import io
import json
import os
import time
from contextlib import redirect_stderr
from pathlib import Path

import click
import polars as pl
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from stream_app import console
from stream_app.event_logs import LogError
from tests.stream_app.test_behaviors import BANK


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable of ours, and an empty working directory."""
    for name in [name for name in os.environ if name.upper().startswith("NEXTMOVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def refused(capsys: pytest.CaptureFixture[str], caught: pytest.ExceptionInfo[typer.Exit]) -> str:
    """The one line that was said."""
    said = capsys.readouterr()
    assert (caught.value.exit_code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert line.startswith("nextmove: ")
    return line


@given(text=st.text())
def test_whatever_an_error_says_is_one_line_and_exit_code_2(text: str) -> None:
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(typer.Exit) as caught, console.one_line(KeyError, ValueError):
        raise ValueError(text)
    assert caught.value.exit_code == 2
    assert said.getvalue().splitlines() == [f"nextmove: {' '.join(text.split())}"]


def test_what_fausts_command_line_refuses_is_told_in_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, console.one_line(click.ClickException):
        raise click.BadParameter("no such app")
    assert refused(capsys, caught) == "nextmove: Invalid value: no such app"


def test_what_another_process_tells_is_not_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, console.one_line(ValueError, silent=True):
        raise ValueError("full")
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == ""


def test_what_nobody_expects_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError, match="bug"), console.one_line(ValueError):
        raise KeyError("bug")
    assert capsys.readouterr().err == ""


def test_an_option_is_worth_more_than_the_environment_if_it_was_given(environment: pytest.MonkeyPatch) -> None:
    for name, value in (("BROKER", "there:1"), ("WEB_PORT", "8000"), ("APP_ID", "theirs")):
        environment.setenv(f"NEXTMOVE_{name}", value)
    console.override(broker="here:2", web_port=9000, app_id=None)
    settings = console.settings_in_force()
    assert (settings.broker, settings.web_port, settings.app_id) == ("here:2", 9000, "theirs")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PARTITIONS": "none"}, ["partitions"]),
        ({"SASL_MECHANISM": "PLAIN"}, ["sasl_username"]),
        ({"PARTITIONS": "0", "WEB_PORT": "http"}, ["partitions", "web_port"]),
    ],
)
def test_settings_that_make_no_sense(
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    named: list[str],
) -> None:
    for name, value in variables.items():
        environment.setenv(f"NEXTMOVE_{name}", value)
    with pytest.raises(typer.Exit) as caught:
        console.settings_in_force()
    line = refused(capsys, caught)
    assert [name for name in named if name not in line] == []


def test_behaviours_are_those_of_the_file_that_the_settings_name(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "add_to_cart" in console.behaviors_in_force().names
    file = tmp_path / "bank.toml"
    environment.setenv("NEXTMOVE_BEHAVIORS", str(file))
    with pytest.raises(typer.Exit) as caught:
        console.behaviors_in_force()
    assert str(file) in refused(capsys, caught)
    file.write_text(BANK)
    assert console.behaviors_in_force().names == ("Transfer", "statement")


def test_a_log_is_read_by_the_behaviours_in_force_and_its_rows_are_accounted_for(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bank.toml").write_text(BANK)
    environment.setenv("NEXTMOVE_BEHAVIORS", str(tmp_path / "bank.toml"))
    log = tmp_path / "log.csv"
    rows = [f"u{n},{1_600_000_000_000 + n},wire," for n in range(1_234)]
    in_a_year = int(time.time() * 1000) + 365 * 86_400_000
    rows += ["u1,1600000000000,view,x", f"u1,{in_a_year},wire,"]  # the former is no behaviour of a bank
    log.write_text("\n".join(["user_id,timestamp,behavior,item_id", *rows, ""]))
    read = console.read([log], "auto", None)
    assert read.frame["behavior"].unique().to_list() == ["Transfer"]
    assert read.frame["user_id"].dtype == pl.Categorical
    expected = "nextmove: 1,234 events; left out: 1 unknown_behavior, 1 bad_timestamp"
    assert capsys.readouterr().err.splitlines() == [expected]
    log.write_text("\n".join(["user_id,timestamp,behavior,item_id", *rows[:3], ""]))
    console.read([log], "nextmove", None)
    assert capsys.readouterr().err.splitlines() == ["nextmove: 3 events"]


def test_a_log_that_cannot_be_read_is_for_the_command_to_tell(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere\.csv"):
        console.read([tmp_path / "nowhere.csv"], "auto", None)
    log = tmp_path / "log.csv"
    log.write_text("user_id,timestamp,behavior,item_id\nu,1600000000000,view,x\n")
    with pytest.raises(LogError, match="missing column category_id"):
        console.read([log], "taobao", None)


def test_a_result_for_machines_is_json_that_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"events": 3, "by day": [{"é": None, "share": 0.5}]}
    console.print_json(value)
    said = capsys.readouterr()
    assert json.loads(said.out) == value
    assert said.out.endswith("}\n")
    assert said.err == ""
