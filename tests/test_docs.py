"""The page for operators: its tables are those of the code, and what it names exists."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from stream_app import dead_letters
from stream_app.events import Reason
from stream_app.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "operations.md").read_text("utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code(generate: ModuleType) -> None:
    assert generate.fill(PAGE) == PAGE, "stale: run docs/generate.py"


def test_every_setting_has_a_row_with_its_default(generate: ModuleType) -> None:
    table = generate.settings_table()
    assert [f"| `{name}` | `NEXTMOVE_{name.upper()}` |" in table for name in Settings.model_fields].count(False) == 0
    assert "| `web_port` | `NEXTMOVE_WEB_PORT` | integer, ≥ 1, ≤ 65535 | `8090` |" in table


def test_every_metric_has_a_row(generate: ModuleType) -> None:
    table = generate.metrics_table()
    assert "| `nextmove_dead_letters_total` | counter | `reason` | Dead letters by reason |" in table
    assert "| `nextmove_model_info` | info | `version`, `device` | The model that predicts |" in table
    assert "| `nextmove_stage_seconds` | histogram | `stage` |" in table


def test_a_page_without_its_markers_is_refused(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match="begin settings"):
        generate.fill("no markers")


def test_every_reason_and_header_of_a_dead_letter_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", PAGE.partition("| `dlq-reason` |")[2].partition("## ")[0], re.MULTILINE)
    assert explained == [reason.value for reason in Reason]
    for header in (dead_letters.REASON, dead_letters.ATTEMPT, dead_letters.OMITTED):
        assert f"`{header}`" in PAGE


def test_every_setting_that_the_text_names_exists() -> None:
    text = PAGE.partition("## Settings")[0]
    named = set(re.findall(r"`(\w+_s|\w+_dir|sasl_\w+|tls\w*|web_\w+|max_\w+|instance_id)\b", text))
    assert named <= set(Settings.model_fields)
    assert set(re.findall(r"`nextmove_\w+`", text)) == {"`nextmove_dead_letters_total`", "`nextmove_model_info`"}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} → {target}"
