"""`train` and `evaluate` as a user gives them: what their own options do, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from model import learner
from model.artifact import read_manifest
from stream_app.cli import app
from tests.texts import text_encoder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "shop.jsonl"
    run("simulate", "--out", str(path), "--users", "20", "--items", "100", "--days", "2")
    return path


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done


def train(log: Path, out: Path, *options: str, code: int = 0) -> Result:
    return run("train", str(log), "--out", str(out), "--time-budget", "1", "-q", *options, code=code)


def test_items_of_a_catalogue_that_nobody_met_are_known_and_reports_show_cold_ones(shop: Path, tmp_path: Path) -> None:
    items = {json.loads(line).get("item_id") for line in shop.read_text().splitlines()} - {None}
    catalogue = tmp_path / "catalogue.csv"
    rows = [f"{item},{'red shoe' if number % 2 else 'blue lamp'}" for number, item in enumerate(sorted(items))]
    catalogue.write_text("\n".join(["item_id,text", *rows, "brand-new,red shoe", ""]))
    encoder = text_encoder(tmp_path / "encoder")
    options = ("--item-text", str(catalogue), "--text-encoder", str(encoder), "--report", str(tmp_path / "report.html"))
    done = train(shop, tmp_path / "model", *options)
    assert f"item text: {len(items) + 1} items, 2 distinct texts" in done.stderr
    described = read_manifest(tmp_path / "model").described
    assert described is not None
    assert (described.items, described.texts) == (len(items) + 1, 2)
    assert described.unmet >= 1
    assert "all but cold item, after some history" in (tmp_path / "report.html").read_text()
    slices = json.loads((tmp_path / "report.json").read_text())["slices"]["item"]
    assert "all but cold item, after some history" in {one["name"] for one in slices}


def test_what_cannot_be_is_one_line(shop: Path, tmp_path: Path) -> None:
    for options, said in (
        (("--item-text", "title"), "has no column title"),
        (("--item-text", "category", "--text-encoder", str(tmp_path)), "is no text encoder"),
        (("--track", "wandb:x"), "is no tracker"),
    ):
        encoder = () if "--text-encoder" in options else ("--text-encoder", str(tmp_path))
        done = train(shop, tmp_path / "model", *options, *(encoder if "--item-text" in options else ()), code=2)
        assert done.stderr.startswith("nextmove: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_tracker_hears_of_the_training(shop: Path, tmp_path: Path) -> None:
    train(shop, tmp_path / "model", "--track", f"tensorboard:{tmp_path / 'board'}")
    assert any((tmp_path / "board").iterdir())


def test_augmentation_is_as_asked(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[float]] = {"crop": set(), "reorder": set()}
    for name, shares in asked.items():
        real = getattr(learner, name)

        def heard(*given: Any, real: Any = real, shares: set[float] = shares) -> Any:
            shares.add(given[2])
            return real(*given)

        monkeypatch.setattr(learner, name, heard)
    train(shop, tmp_path / "plain")
    assert asked == {"crop": set(), "reorder": set()}
    train(shop, tmp_path / "model", "--crop", "0.25", "--mask", "0.125", "--reorder", "0.5")
    assert asked == {"crop": {0.25}, "reorder": {0.5}}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["unknown_items"] == 0.125
    for share in ("1.5", "nan"):
        done = train(shop, tmp_path / "none", "--crop", share, code=2)
        assert "--crop" in done.output


def test_a_training_goes_on_from_an_older_model(shop: Path, tmp_path: Path) -> None:
    train(shop, tmp_path / "old", "--split", "0.6")
    train(shop, tmp_path / "new", "--from", str(tmp_path / "old"), "--replay", "0.5")
    manifest = read_manifest(tmp_path / "new")
    assert manifest.training.older == read_manifest(tmp_path / "old").version
    done = train(shop, tmp_path / "none", "--split", "0.4", "--from", str(tmp_path / "old"), code=2)
    assert "has learned from all of these days already" in done.stderr


def test_a_backtest_says_for_each_day_how_good_each_update_was(shop: Path) -> None:
    options = ("--update", "fine-tune", "--update", "keep", "--time-budget", "1", "-q")
    found = json.loads(run("backtest", str(shop), "--days", "1", "--json", *options).stdout)
    assert [(one["update"], one["day"]) for one in found] == [("fine-tune", found[0]["day"]), ("keep", found[0]["day"])]
    assert found[0]["model_version"] == found[1]["model_version"]
    assert found[0]["scores"]["model"].keys() >= {"item NDCG@10", "behavior log-loss"}
    done = run("backtest", str(shop), "--days", "9", "-q", code=2)
    assert "days with a day before them, not 9" in done.stderr.splitlines()[-1]
