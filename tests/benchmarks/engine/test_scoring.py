from benchmarks.engine.scoring import TOP_K, agreement, main, measure
from model.scorer import Scorer
from tests.model.test_scorer import catalogue


def test_a_row_for_each_setting_and_the_exact_one_agrees_with_itself():
    rows = measure([300], [1, 3], ["float32", "int8"], [False], rounds=2)
    assert [(row["precision"], row["batch"]) for row in rows] == [
        ("float32", 1), ("float32", 3), ("int8", 1), ("int8", 3)
    ]  # fmt: skip
    assert all(0 < row["us_per_query_best"] <= row["us_per_query"] and row["bytes"] > 0 for row in rows)
    assert [(row["recall"], row["log_total_error_worst"]) for row in rows[:2]] == [(1, 0), (1, 0)]


def test_recall_is_the_share_of_the_exact_list_that_was_found():
    vectors, bias = catalogue(50)
    exact = Scorer(vectors, bias).top(vectors[:2], TOP_K)
    found = exact._replace(classes=exact.classes.clone(), log_total=exact.log_total + 0.5)
    found.classes[0, :3] = 0
    assert agreement(found, exact) == {
        "recall": round((7 / 10 + 1) / 2, 5),
        "log_total_error": 0.5,
        "log_total_error_worst": 0.5,
    }


def test_the_command_line_writes_a_row_per_line(capsys):
    arguments = ["--sizes", "200", "--batches", "2", "--precisions", "bfloat16", "--compiled", "no", "--rounds", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n") == 1
