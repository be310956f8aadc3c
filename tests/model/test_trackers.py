import logging

import pytest

from model import trackers
from model.artifact import read_manifest
from model.order import Keeping
from model.trackers import TrackerError, flat, mlflow_name, tracker
from model.training import TrainingError, train
from tests.model.conftest import BEHAVIORS, make_log


def learn(place, track, **options):
    return train(
        make_log(users=6, events=15), BEHAVIORS, "purchase", place / "m",
        **{"epochs": 2, "device": "cpu", "callbacks": [tracker(track)], **options},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def files_allowed(monkeypatch):
    """The kind of MLflow's stores that its small package brings along."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def test_tensorboard_shows_the_losses_and_the_model(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn(tmp_path, f"tensorboard:{tmp_path / 'board'}")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    manifest = read_manifest(tmp_path / "m")
    first, second = (one for one in manifest.curve if one.phase == "train")
    assert [one.step for one in found.Scalars("train/training loss")] == [1, 2]
    assert [one.value for one in found.Scalars("train/validation item")] == pytest.approx(
        [first.validation["item"], second.validation["item"]]
    )
    steps = [one.step for one in found.Scalars("train/batch loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert "model/validation item NDCG@10" in found.Tags()["scalars"]
    assert manifest.version.encode() in found.Tensors("model/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_has_a_run_with_options_figures_and_the_version(tmp_path):
    from mlflow import MlflowClient

    uri = (tmp_path / "runs").as_uri()
    learn(tmp_path, f"mlflow:{uri}", seed=5)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("nextmove").experiment_id])
    manifest = read_manifest(tmp_path / "m")
    assert run.info.status == "FINISHED"
    assert run.data.tags["model version"] == manifest.version
    assert run.data.params["seed"] == "5"
    assert run.data.params["recipe.epochs"] == "2"
    assert run.data.metrics["model/validation item NDCG_10"] == manifest.metrics["validation item NDCG@10"]
    history = client.get_metric_history(run.info.run_id, "train/training loss")
    assert [one.value for one in history] == [one.training["loss"] for one in manifest.curve if one.phase == "train"]


def test_a_training_that_fails_is_a_run_that_failed(tmp_path):
    from mlflow import MlflowClient

    (tmp_path / "kept").write_text("no directory")
    uri = (tmp_path / "runs").as_uri()
    with pytest.raises(TrainingError, match="is not a directory"):
        learn(tmp_path, f"mlflow:{uri}", keeping=Keeping(tmp_path / "kept"))
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("nextmove").experiment_id])
    assert run.info.status == "FAILED"


def test_what_is_no_tracker_or_not_installed_is_one_line(monkeypatch, tmp_path):
    for text in ("wandb:x", "tensorboard", "mlflow:"):
        with pytest.raises(TrackerError, match="is no tracker; give tensorboard:DIR or mlflow:URI"):
            tracker(text)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackerError, match="tensorboard:.*/file cannot be written"):
        learn(tmp_path, f"tensorboard:{tmp_path / 'file'}")
    assert not (tmp_path / "m").exists()
    monkeypatch.setitem(trackers.KINDS, "mlflow", ("no_such_package", trackers.MLflow))
    with pytest.raises(TrackerError, match=r"mlflow is not installed; pip install 'nextmove\[trackers\]'"):
        tracker("mlflow:somewhere")


def test_a_tracker_that_fails_later_is_left_alone(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(trackers.TensorBoard, "figures", full)
    with caplog.at_level(logging.WARNING, "nextmove"):
        learn(tmp_path, f"tensorboard:{tmp_path / 'board'}")
    assert [one.getMessage() for one in caplog.records] == [
        f"tensorboard:{tmp_path / 'board'} gets no more of this training: no space left"
    ]
    assert (tmp_path / "m" / "manifest.json").is_file()


def test_options_are_flat_and_names_as_mlflow_wants_them():
    assert dict(flat({"a": {"b": 1, "c": {"d": None}}, "e": [2]})) == {"a.b": "1", "a.c.d": "None", "e": "[2]"}
    assert mlflow_name("time pinball (log s)@10/x") == "time pinball _log s__10/x"
