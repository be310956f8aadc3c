"""Three layers, one direction: read from the imports of every module, whether they run or not."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = {
    "stream_app",
    "stream_app.behaviors",
    "stream_app.dead_letters",
    "stream_app.event_logs",
    "stream_app.events",
    "stream_app.expiry",
    "stream_app.formats",
    "stream_app.history",
    "stream_app.history_cache",
    "stream_app.history_codec",
    "stream_app.history_layout",
    "stream_app.item_texts",
    "stream_app.log_formats",
    "stream_app.pipeline",
    "stream_app.predictions",
    "stream_app.scoring",
    "stream_app.simulation",
}
TRANSPORT = {
    "stream_app.agent",
    "stream_app.aiokafka_fixes",
    "stream_app.banned_items",
    "stream_app.consumer",
    "stream_app.app",
    "stream_app.broker",
    "stream_app.chunk_states",
    "stream_app.cli",
    "stream_app.connection",
    "stream_app.console",
    "stream_app.demo",
    "stream_app.faust_options",
    "stream_app.garbage",
    "stream_app.intake",
    "stream_app.learning",
    "stream_app.logs",
    "stream_app.metrics",
    "stream_app.model_commands",
    "stream_app.model_watch",
    "stream_app.observations",
    "stream_app.outgoing",
    "stream_app.player",
    "stream_app.producing",
    "stream_app.replay",
    "stream_app.schemas",
    "stream_app.serving",
    "stream_app.settings",
    "stream_app.tables",
    "stream_app.topics",
    "stream_app.turns",
    "stream_app.web",
    "stream_app.worker",
}
NOT_IN_CORE = {"faust", "mode", "aiokafka", "confluent_kafka", "torch", "transformers", "prometheus_client"}
CLOCKS = {"time", "sched", "threading", "asyncio"}  # modules; and of datetime:
CLOCK_CALLS = {"now", "utcnow", "today"}


def find(package: str) -> dict[str, Path]:
    """Every module of a package by its name."""
    modules = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = {**find("stream_app"), **find("model")}


def imports(name: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """The modules that `source`, the text of the module `name`, imports anywhere: at the top, in a function, for types."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield from _with_parents(str(node.args[0].value))


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def direct(name: str) -> set[str]:
    path = MODULES[name]
    return set(imports(name, path.read_text("utf-8"), is_package=path.name == "__init__.py"))


def reach(name: str) -> dict[str, tuple[str, ...]]:
    """Everything that a module imports, directly or through another of ours, and the way there."""
    ways = {name: (name,)}
    open_ = [name]
    while open_:
        module = open_.pop()
        if module in MODULES:
            for imported in direct(module) - ways.keys():
                ways[imported] = (*ways[module], imported)
                open_.append(imported)
    return ways


def test_every_module_has_its_layer() -> None:
    ours = {name for name in MODULES if name.split(".")[0] == "stream_app"}
    assert not ours - CORE - TRANSPORT, "say in this file whether a new module is core or transport"
    assert not CORE & TRANSPORT
    assert ours >= CORE


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_reaches_neither_kafka_nor_a_model_library(name: str) -> None:
    ways = reach(name)
    assert not {" → ".join(way) for module, way in ways.items() if module.split(".")[0] in NOT_IN_CORE}
    assert not {" → ".join(way) for module, way in ways.items() if module in TRANSPORT}


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_reads_no_clock(name: str) -> None:
    assert not {imported for imported in direct(name) if imported.split(".")[0] in CLOCKS}
    calls = [node for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(node, ast.Attribute)]
    assert not {call.attr for call in calls} & CLOCK_CALLS


@pytest.mark.parametrize("name", sorted(find("model")))
def test_the_model_never_imports_the_stream(name: str) -> None:
    foreign = {"stream_app", "faust", "mode", "aiokafka", "confluent_kafka"}
    assert not {" → ".join(way) for module, way in reach(name).items() if module.split(".")[0] in foreign}


def test_what_python_loads_agrees_with_what_was_read() -> None:
    """The core, imported in a fresh process, brings no forbidden library along through anybody else's package either."""
    code = (
        f"import sys; [__import__(name) for name in {sorted(CORE)}]; print(*{{m.split('.')[0] for m in sys.modules}})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "stream_app" in loaded.split()
    assert not set(loaded.split()) & NOT_IN_CORE


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a", "a.b"}),
        ("import a as b, c", {"a", "c"}),
        ("from a.b import c", {"a", "a.b", "a.b.c"}),
        ("def f():\n    import a", {"a"}),
        ("if TYPE_CHECKING:\n    import a", {"a"}),
        ("from . import c", {"p", "p.c"}),
        ("from .q import c", {"p", "p.q", "p.q.c"}),
        ("importlib.import_module('a.b')", {"a", "a.b"}),
        ("__import__('a')", {"a"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert set(imports("p.m", source)) == expected


def test_a_package_is_its_own_parent() -> None:
    assert set(imports("p", "from .q import c", is_package=True)) == {"p", "p.q", "p.q.c"}
    assert set(imports("p.q.m", "from ..r import c")) == {"p", "p.r", "p.r.c"}
