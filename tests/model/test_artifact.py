import hashlib
import json
import shutil

import msgspec
import pytest
import safetensors.torch
import torch

from model import artifact, durable
from model.artifact import ArtifactError, Golden, load, publish, read_manifest, version_of
from model.calibration import Calibration, Line
from model.engine import GOLDEN_TOP_K, Engine
from model.window import DAY_MS, WindowRule


@pytest.fixture
def copy(model_directory, tmp_path):
    return shutil.copytree(model_directory, tmp_path / "copy")


def refused(directory, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        Engine.load(directory, device="cpu")
    assert "\n" not in str(caught.value)


def sign(directory, **changes):
    """Rewrites the manifest with changes and a version that fits them."""
    manifest = msgspec.structs.replace(read_manifest(directory), **changes)
    manifest = msgspec.structs.replace(manifest, version=version_of(manifest))
    (directory / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def test_the_directory_holds_what_it_says_and_no_pickle(model_directory):
    names = {path.name for path in model_directory.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocabulary.json", "manifest.json", "README.md"}
    manifest = read_manifest(model_directory)
    assert set(manifest.files) == names - {"manifest.json"}
    assert len(manifest.golden) > 0
    assert not [path for path in model_directory.parent.iterdir() if path.name.startswith(".")]


def test_a_missing_directory(tmp_path):
    refused(tmp_path / "none", "no model directory at")


def test_a_directory_that_is_no_model(tmp_path):
    refused(tmp_path, "is not a model: it has no manifest.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json", "README.md"])
def test_a_missing_truncated_or_changed_file(copy, name):
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(copy, f"{name} is damaged or was changed")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(copy, f"{name} is damaged or was changed")
    path.unlink()
    refused(copy, f"{name} is missing")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"schema": 1}', b"null"])
def test_a_damaged_manifest(copy, content):
    (copy / "manifest.json").write_bytes(content)
    refused(copy, "manifest.json is damaged")


def test_a_changed_manifest(copy):
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["goal_horizon_ms"] += 1
    path.write_text(json.dumps(document))
    refused(copy, "manifest.json was changed after it was written")


def test_a_manifest_from_before_windows_had_strides_is_as_it_was(copy):
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    assert document["window"].pop("stride") == document["window"].pop("age_stride_ms") == 1
    assert (document["calibration"].pop("times"), document["calibration"].pop("waiting")) == ([], None)
    body = msgspec.json.encode({**document, "version": ""}, order="deterministic")
    assert hashlib.sha256(body).hexdigest()[:16] == document["version"]  # as versions were made then
    path.write_text(json.dumps(document))
    assert read_manifest(copy).window == WindowRule()


def test_a_stride_is_part_of_the_version(copy):
    before = read_manifest(copy).version
    sign(copy, window=WindowRule().with_stride(25))
    assert read_manifest(copy).window == WindowRule(stride=25, age_stride_ms=15 * DAY_MS)
    assert read_manifest(copy).version != before
    document = json.loads((copy / "manifest.json").read_text())
    document["window"]["stride"] = 1
    (copy / "manifest.json").write_text(json.dumps(document))
    refused(copy, "manifest.json was changed after it was written")


def test_a_newer_schema(copy):
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema": 5, "unheard_of": {}}))
    refused(copy, "has schema 5, this program reads up to 4: upgrade the program")


def test_a_model_of_before_times_were_calibrated_is_the_same_version(copy):
    sign(copy, calibration=Calibration(2.0))
    document = json.loads((copy / "manifest.json").read_text())
    del document["calibration"]["times"], document["calibration"]["waiting"]
    (copy / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(copy).calibration == Calibration(2.0)
    sign(copy, calibration=Calibration(2.0, times=(Line(), Line(), Line())))
    assert read_manifest(copy).version != document["version"]


def test_a_model_without_calibration_has_a_version(copy):
    sign(copy, calibration=None)
    document = json.loads((copy / "manifest.json").read_text())
    assert document.get("calibration") is None
    body = {name: value for name, value in document.items() if name not in ("calibration", "version")}
    del body["window"]["stride"], body["window"]["age_stride_ms"]
    content = msgspec.json.encode({**body, "version": ""}, order="deterministic")
    assert hashlib.sha256(content).hexdigest()[:16] == document["version"] == read_manifest(copy).version


def without_weights(directory, *names):
    """Rewrites the weights without some of them, as schema 2 had no `behavior_after`."""
    path = directory / "model.safetensors"
    weights = {name: value for name, value in safetensors.torch.load_file(path).items() if name not in names}
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    files = {**read_manifest(directory).files, path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    sign(directory, schema=2, files=files)


def test_a_model_of_before_behaviours_followed_each_other_answers_as_it_did(copy):
    parts = load(copy)
    assert parts.model.behavior_after.any()
    without_weights(copy, "behavior_after")
    older = load(copy)
    assert torch.equal(older.model.behavior_after, torch.zeros_like(parts.model.behavior_after))
    assert torch.equal(older.model.behavior_head.weight, parts.model.behavior_head.weight)
    with torch.no_grad():
        parts.model.behavior_after.zero_()
    sign(copy, golden=with_golden_answers(parts))
    Engine.load(copy, device="cpu")


def with_golden_answers(parts):
    """What a network says now to the windows of its golden answers."""
    windows = [one.window for one in parts.manifest.golden]
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    return [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]


@pytest.mark.parametrize("names", [["goal_head.weight"], ["behavior_after", "goal_head.weight"]])
def test_weights_that_lack_a_part(copy, names):
    without_weights(copy, *names)
    refused(copy, "the weights do not fit this program's network; train again")


def test_a_manifest_that_lists_no_weights(copy):
    manifest = read_manifest(copy)
    sign(copy, files={name: value for name, value in manifest.files.items() if name != "model.safetensors"})
    refused(copy, "the manifest lists no model.safetensors")


def test_golden_answers_that_are_not_given(copy):
    golden = read_manifest(copy).golden
    changed = msgspec.structs.replace(
        golden[2], forecast=msgspec.convert({**msgspec.to_builtins(golden[2].forecast), "churn_probability": 2.0},
                                            type(golden[2].forecast))
    )  # fmt: skip
    sign(copy, golden=[*golden[:2], changed, *golden[3:]])
    refused(copy, "does not reproduce its golden answers on cpu: off by")


@pytest.mark.parametrize("fewer_names", [0, 1])
def test_a_vocabulary_of_another_model(copy, fewer_names):
    path = copy / "vocabulary.json"
    document = json.loads(path.read_text())
    document["items"]["buckets"] += 1
    for column in (document["items"]["names"], document["item_counts"], document["item_categories"]):
        del column[len(column) - fewer_names :]
    path.write_text(json.dumps(document))
    files = {**read_manifest(copy).files, "vocabulary.json": artifact._sha256(path)}
    sign(copy, files=files)
    refused(copy, "config.json and vocabulary.json do not belong together")


def test_weights_that_are_no_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(b"\0" * 64)
    sign(copy, files={**read_manifest(copy).files, "model.safetensors": artifact._sha256(path)})
    refused(copy, "the weights cannot be read")


def test_weights_of_another_network(copy):
    path = copy / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "layers": 3}))
    sign(copy, files={**read_manifest(copy).files, "config.json": artifact._sha256(path)})
    refused(copy, "the weights do not fit this program's network")


def test_a_model_at_work_does_not_notice_that_its_files_are_overwritten(copy):
    engine = Engine.load(copy, device="cpu")
    window = engine.manifest.golden[0].window
    before = engine.predict([window])
    with (copy / "model.safetensors").open("r+b") as file:  # in place, as `cp` does
        file.write(bytes(8) + b"\x3c" * ((copy / "model.safetensors").stat().st_size - 8))
    assert engine.predict([window]) == before


def test_publishing_again_gives_the_same_version_and_replaces(model_directory, tmp_path):
    place = tmp_path / "deep" / "er"
    first = publish(place, load(model_directory))
    second = publish(place, load(model_directory))
    assert first.version == second.version == read_manifest(model_directory).version
    assert Engine.load(place, device="cpu").version == first.version
    assert [path.name for path in place.parent.iterdir()] == ["er"]


def test_an_empty_directory_may_be_filled(model_directory, tmp_path):
    place = tmp_path / "empty"
    place.mkdir()
    publish(place, load(model_directory))
    read_manifest(place)


def test_something_that_is_not_a_model_is_never_overwritten(model_directory, tmp_path):
    parts = load(model_directory)
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ArtifactError, match="holds something that is not a model"):
        publish(tmp_path, parts)
    with pytest.raises(ArtifactError, match="exists and is not a directory"):
        publish(tmp_path / "letter", parts)
    assert (tmp_path / "letter").read_text() == "dear"


def test_a_failed_write_leaves_the_old_model_and_no_rubbish(model_directory, tmp_path, monkeypatch):
    place = tmp_path / "model"
    parts = load(model_directory)
    version = publish(place, parts).version

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(ArtifactError, match="cannot write .*: No space left on device"):
        publish(place, parts)
    assert read_manifest(place).version == version
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_card_says_what_it_is(model_directory):
    text = (model_directory / "README.md").read_text()
    assert "2000 events" not in text
    assert "goal: purchase within" in text
    assert "validation item NDCG@10" in text
