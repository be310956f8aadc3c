"""The command line as a user meets it: what goes wrong is one clear line and exit code 2, never a traceback."""

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from stream_app.broker import EmbeddedBroker
from tests.processes import free_port, nextmove

TOPICS = ("user-events", "predictions", "user-events.dlq", "nextmove-histories-changelog")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a tiny simulated shop."""
    folder = tmp_path_factory.mktemp("cli")
    log, out = folder / "shop.jsonl", folder / "model"
    assert nextmove("simulate", "--out", str(log), "--users", "60", "--items", "200", "--days", "3").returncode == 0
    done = nextmove("train", str(log), "--out", str(out), "--time-budget", "5", "-q")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(dict.fromkeys(TOPICS, 2)) as running:
        yield running


def refusal(*arguments: str, **environment: str) -> str:
    """The one line on stderr of a command that cannot be done."""
    done = nextmove(*arguments, **environment)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert lines, "nothing was said"
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("nextmove: "), done.stderr
    return lines[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"user_id,item_id,category_id,behavior,timestamp\n", "no"),
        (b"user_id,item_id,behavior\n1,2,pv\n", "column"),
        (bytes(range(256)) * 4, "text"),
    ],
    ids=["empty", "header only", "missing column", "binary"],
)
def test_a_log_that_cannot_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(content)
    line = refusal("replay", str(log), "--to", "kafka", "--dry-run", "--format", "taobao")
    assert str(log) in line
    assert expected in line.lower()


def test_nothing_is_left_of_a_training_that_cannot_be(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(b"user_id,item_id,category_id,behavior,timestamp\n1,2,3,pv,1511544070\n")
    refusal("train", str(log), "--out", str(tmp_path / "model"), "-q")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_backbone_that_is_none_and_one_that_is(model: Path, tmp_path: Path) -> None:
    log, out = str(model.parent / "shop.jsonl"), tmp_path / "model"
    assert "there are nextmove, gpt2" in refusal("train", log, "--out", str(out), "--backbone", "mamba", "-q")
    done = nextmove("train", log, "--out", str(out), "--backbone", "gru", "--time-budget", "2", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["backbone"] == "gru"


def test_the_stride_of_windows_goes_into_the_manifest(model: Path, tmp_path: Path) -> None:
    log, out = str(model.parent / "shop.jsonl"), tmp_path / "model"
    assert "stride must be at most 50, got 51" in refusal("train", log, "--out", str(out), "--stride", "51", "-q")
    done = nextmove("train", log, "--out", str(out), "--stride", "25", "--time-budget", "2", "-q")
    assert done.returncode == 0, done.stderr
    window = json.loads((out / "manifest.json").read_text())["window"]
    assert (window["stride"], window["age_stride_ms"]) == (25, 30 * 86_400_000 * 25 // 50)
    assert "the last 26 to 50 events" in (out / "README.md").read_text()


def test_a_log_that_is_not_there_or_cut_off(tmp_path: Path) -> None:
    assert "nowhere.csv" in refusal("replay", str(tmp_path / "nowhere.csv"), "--to", "kafka", "--dry-run")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(b"user_id,item_id,category_id,behavior,timestamp\n" * 500)[:-20])
    assert "cut.csv.gz" in refusal("replay", str(cut), "--to", "kafka", "--dry-run")


def damaged(model: Path, tmp_path: Path, kind: str) -> Path:
    """A copy of a model with something wrong."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights, manifest = copy / "model.safetensors", copy / "manifest.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "tampered":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif kind == "incomplete":
        weights.unlink()
    elif kind == "newer":
        fields = json.loads(manifest.read_bytes())
        fields["schema"] = fields["schema"] + 1
        manifest.write_text(json.dumps(fields))
    return copy


@pytest.mark.parametrize("kind", ["missing", "truncated", "tampered", "incomplete", "newer"])
def test_a_model_that_cannot_be_used(model: Path, tmp_path: Path, broker: EmbeddedBroker, kind: str) -> None:
    directory = tmp_path / "nowhere" if kind == "missing" else damaged(model, tmp_path, kind)
    line = refusal("worker", "--model", str(directory), "--broker", broker.bootstrap, web_port=str(free_port()))
    assert str(directory) in line


def test_a_worker_without_a_model(broker: EmbeddedBroker) -> None:
    assert "--model" in refusal("worker", "--broker", broker.bootstrap, web_port=str(free_port()))


def test_no_broker_at_the_address(model: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    for arguments in (("worker", "--model", str(model)), ("topics",)):
        line = refusal(*arguments, "--broker", address, broker_timeout_s="3", web_port=str(free_port()))
        assert address in line


def test_topics_with_unequal_partition_counts(model: Path) -> None:
    with EmbeddedBroker({**dict.fromkeys(TOPICS, 2), "predictions": 3}) as broker:
        line = refusal("worker", "--model", str(model), "--broker", broker.bootstrap, web_port=str(free_port()))
    assert "predictions" in line
    assert "3" in line


def test_topics_that_are_missing(model: Path) -> None:
    with EmbeddedBroker({"user-events": 2}) as broker:
        line = refusal("worker", "--model", str(model), "--broker", broker.bootstrap, web_port=str(free_port()))
    assert "predictions" in line
    assert "nextmove topics" in line


def test_a_port_that_is_taken(model: Path, broker: EmbeddedBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal("worker", "--model", str(model), "--broker", broker.bootstrap, "--port", port)
    assert port in line


def test_settings_never_show_a_secret() -> None:
    done = nextmove("settings", sasl_mechanism="PLAIN", sasl_username="me", sasl_password="hunter2")
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["sasl_username"] == "me"


@pytest.mark.parametrize("what", ["event", "prediction"])
def test_schemas_are_valid_and_complete(what: str) -> None:
    schema = json.loads(nextmove("schema", what).stdout)
    Draft202012Validator.check_schema(schema)
    wanted = {"event": {"user_id", "behavior", "timestamp"}, "prediction": {"prediction_id", "next_items", "fallback"}}
    body = schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    assert wanted[what] <= set(body["required"])


def test_the_same_log_and_seed_give_the_same_file(tmp_path: Path) -> None:
    for really in (False, True):  # which hash with other seeds
        name = "b" if really else "a"
        arguments = ("simulate", "--out", str(tmp_path / name), "--users", "20", "--seed", "3")
        assert nextmove(*arguments, really=really).returncode == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_evaluate_prints_the_model_beside_the_baselines(model: Path) -> None:
    done = nextmove("evaluate", str(model), str(model.parent / "shop.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert {"model", "repeat", "popularity", "markov"} <= scores.keys()
    assert all(0 <= scores[name]["item NDCG@10"] <= 1 for name in ("model", "repeat", "popularity", "markov"))


def test_a_replay_that_only_says_what_it_would_send(model: Path) -> None:
    done = nextmove("replay", str(model.parent / "shop.jsonl"), "--to", "kafka", "--dry-run", "--json")
    lines = (model.parent / "shop.jsonl").read_bytes().count(b"\n")
    assert json.loads(done.stdout)["would_send"] == lines


def test_an_inline_replay_needs_a_place_for_its_predictions(model: Path) -> None:
    log = str(model.parent / "shop.jsonl")
    assert "--out" in refusal("replay", log, "--to", "inline", "--model", str(model), "-q")
