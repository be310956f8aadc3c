import time

import polars as pl
import pytest
import torch

from model import report
from model.artifact import read_manifest
from model.calibration import WAITS
from model.cleaning import OFF, Cleaning
from model.config import BACKBONES, QUANTILES
from model.engine import Engine
from model.evaluation import evaluate
from model.training import TrainingError, train
from model.window import Window, WindowRule
from tests.model.conftest import BEHAVIORS, make_log
from tests.model.test_learner import Heard


def quick(frame, out, **options):
    return train(frame, BEHAVIORS, "purchase", out, **{"epochs": 1, "device": "cpu", **options})


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path):
    frame = make_log(users=10, events=20)
    versions = [quick(frame, tmp_path / str(n), seed=seed).version for n, seed in enumerate((1, 1, 2))]
    assert versions[0] == versions[1] != versions[2]


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick(make_log(users=5, events=10), tmp_path / "m")
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_number_of_threads_alone(tmp_path):
    before = torch.get_num_threads()
    quick(make_log(users=5, events=10), tmp_path / "m", threads=before + 1)
    assert torch.get_num_threads() == before


def test_nothing_after_the_training_part_reaches_the_model(log, tmp_path):
    changed = log.with_row_index().with_columns(
        item_id=pl.when(pl.col("index") >= 1600).then(pl.lit("later")).otherwise("item_id"),
        behavior=pl.when(pl.col("index") >= 1600).then(pl.lit("purchase")).otherwise("behavior"),
    )
    assert quick(log, tmp_path / "a").version == quick(changed.drop("index"), tmp_path / "b").version


def test_the_manifest_says_what_was_learned_from(model_directory, log):
    manifest = read_manifest(model_directory)
    assert (manifest.training.events, manifest.training.users) == (1600, 40)
    assert manifest.training.until_ms == log["timestamp"][1599]
    assert manifest.goal_horizon_ms > 0
    assert 0 < manifest.metrics["validation item NDCG@10"] <= 1


def test_waits_are_calibrated_on_what_was_not_learned(tmp_path):
    frame = make_log(users=60, events=60)
    quick(frame, tmp_path / "model")
    found = read_manifest(tmp_path / "model").calibration
    checked = len(frame) * 0.8 * 0.1
    assert WAITS <= found.waiting.events <= checked
    assert len(found.times) == len(QUANTILES)
    assert found.waiting.pinball[1] <= found.waiting.pinball[0]
    Engine.load(tmp_path / "model", device="cpu")  # which gives the golden answers again
    evaluated = evaluate(tmp_path / "model", frame, split=0.8)
    page = report.page(evaluated, read_manifest(tmp_path / "model"))
    assert f"were fitted on {found.waiting.events} events" in page


def test_the_whole_log_can_be_learned(tmp_path):
    frame = make_log(users=6, events=15)
    assert quick(frame, tmp_path / "m", train_until=1.0).events == 90
    assert quick(frame, tmp_path / "n", train_until=1.0, validation=0).events == 90


def test_a_budget_is_kept(tmp_path):
    begun = time.monotonic()
    result = quick(make_log(users=20, events=40), tmp_path / "m", time_budget_s=1.0, epochs=10_000)
    assert time.monotonic() - begun < 10
    Engine.load(result.directory, device="cpu")


def test_leave_one_out_learns_from_all_but_the_last_two_events_of_each_user(tmp_path):
    frame = make_log(users=10, events=20)
    lasts = pl.int_range(pl.len()).over("user_id") >= 18
    late = pl.when(lasts).then(pl.lit("later"))
    changed = frame.with_columns(item_id=late.otherwise("item_id"), behavior=late.otherwise("behavior"))
    result, other = (
        quick(one, tmp_path / name, protocol="leave-one-out") for name, one in (("m", frame), ("n", changed))
    )
    assert result.version == other.version
    assert (result.events, read_manifest(tmp_path / "m").training.protocol) == (10 * 18, "leave-one-out")


def test_what_is_learned_from_is_cleaned_and_the_manifest_says_how(tmp_path):
    frame = make_log(users=10, events=20)
    doubled = pl.concat([frame, frame]).sort("timestamp", maintain_order=True)
    result = quick(doubled, tmp_path / "m", train_until=0.5)
    assert result.events == 100
    report = read_manifest(tmp_path / "m").cleaning
    assert report == result.cleaning
    assert (report.before.events, report.after.events) == (200, 100)
    assert {one.rule: one.rows for one in report.removed if one.rows} == {"equal row": 100}
    assert "| equal row |  | 100 | 0 |" in (tmp_path / "m" / "README.md").read_text()
    assert quick(doubled, tmp_path / "n", train_until=0.5, cleaning=OFF).events == 200


def test_rules_that_leave_nothing_are_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"cleaning leaves nothing \(.* rare item.*\); loosen"):
        quick(make_log(users=5, events=10), tmp_path / "m", cleaning=Cleaning(rare_items=1000))
    assert list(tmp_path.iterdir()) == []


def test_progress_is_reported_in_order(tmp_path):
    seen = []
    quick(make_log(users=6, events=15), tmp_path / "m", callbacks=[Heard(seen)])
    phases = list(dict.fromkeys(one.phase for one in seen))
    assert phases == ["prepare", "train", "validate", "refit", "save"]
    assert all(0 <= one.step <= one.total for one in seen)


def test_training_beats_repeating(tmp_path):
    """Users go round three items: the next one is the one least recently seen, which recency puts third."""
    frame = make_log(users=60, events=60)
    result = quick(frame, tmp_path / "m", epochs=8)
    scores = evaluate(result.directory, frame, device="cpu").scores
    assert scores["model"]["item NDCG@10"] > scores["repeat"]["item NDCG@10"] + 0.05


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_a_model_of_any_backbone_is_published_and_answers(backbone, tmp_path):
    result = quick(make_log(users=6, events=15), tmp_path / "m", backbone=backbone, window=WindowRule(events=8))
    assert read_manifest(result.directory).training.backbone == backbone
    engine = Engine.load(result.directory, device="cpu")
    long, short = (Window(["item-1"] * n, ["view"] * n, [None] * n, list(range(n))) for n in (20, 1))
    answers = engine.predict([long, short])
    assert all(sum(answer.next_behaviors) == pytest.approx(1) for answer in answers)
    assert (tmp_path / "m" / "README.md").read_text().count(f"backbone {backbone},") == 1


def never_repeating(users=30, items=40):
    """Everybody goes through the same items in the same order, from somewhere on, and meets each one once."""
    rows = [
        (f"user-{n}", 1000 * (step + n), "view", f"item-{n + step:02}", None)
        for n in range(users)
        for step in range(items)
    ]
    schema = {
        "user_id": pl.String,
        "timestamp": pl.Int64,
        "behavior": pl.String,
        "item_id": pl.String,
        "category": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row").sort("timestamp", maintain_order=True)


def test_where_nobody_repeats_anything_there_is_no_copy_path_and_no_old_item_is_proposed(tmp_path):
    result = quick(never_repeating(), tmp_path / "m")
    engine = Engine.load(result.directory, device="cpu")
    assert not engine._model.config.copy
    met = [f"item-{n}" for n in range(20, 30)]
    window = Window(met, ["view"] * 10, [None] * 10, [1000 * n for n in range(10)])
    listed = [item["item_id"] for item in engine.predict([window], top_k=60)[0].next_items]
    assert not set(met) & set(listed)
    assert len(listed) == 60 or {*met, *listed} == set(engine.popular_items)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (make_log().head(0), "the table of events is empty"),
        (make_log().drop("behavior"), "has no column behavior"),
        (make_log().with_columns(user_id=pl.lit(None, pl.String)), "no row with a user, a time and a behaviour"),
        (make_log().head(1), "nothing to learn: no user has two events"),
        (make_log(users=40, events=1), "nothing to learn: no user has two events"),
        (make_log().with_columns(timestamp=pl.lit("noon")), "a column of the wrong type"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(frame, message, tmp_path):
    with pytest.raises(TrainingError, match=message) as caught:
        quick(frame, tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_goal_that_is_no_behaviour_and_a_place_that_is_taken(tmp_path, log):
    with pytest.raises(TrainingError, match="the goal 'fly' is not one of the behaviours"):
        train(log, BEHAVIORS, "fly", tmp_path / "m", epochs=1)
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(TrainingError, match="holds something that is not a model"):
        quick(log, tmp_path)


def lone(**columns):
    return make_log(users=4, events=12).with_columns(**columns)


@pytest.mark.parametrize(
    "frame",
    [
        make_log(users=1, events=30),
        lone(item_id=pl.lit("only")),
        lone(behavior=pl.lit("view")),
        lone(category=pl.lit(None, pl.String)),
        lone(item_id=pl.lit(None, pl.String)),
        lone(timestamp=pl.lit(5)),
        lone(behavior=pl.lit("unlisted")),
    ],
    ids=["one user", "one item", "one behaviour", "no category", "no item", "one time", "unlisted behaviours"],
)
def test_poor_logs_still_give_a_model_that_answers(frame, tmp_path):
    result = quick(frame, tmp_path / "m", window=WindowRule(events=8))
    engine = Engine.load(result.directory, device="cpu")
    forecast = engine.predict([Window(["only"], ["view"], [None], [0])])[0]
    assert sum(forecast.next_behaviors) == pytest.approx(1)
    assert (forecast.next_categories == []) == (frame["category"].null_count() == frame.height)


def test_a_loss_that_is_no_number_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("model.learner.Learner.step", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match="training diverged: the loss is not a number"):
        quick(make_log(users=6, events=15), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_where_all_pairs_lie_in_the_validation_part_all_is_learned(tmp_path):
    frame = make_log(users=10, events=1)
    again = frame.tail(1).with_columns(timestamp=pl.col("timestamp") + 1)
    assert quick(pl.concat([frame, again]), tmp_path / "m", train_until=1.0, validation=0.5).events == 11
