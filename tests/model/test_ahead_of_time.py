"""Programs as libraries on disk."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import ahead_of_time, building, native
from model.ahead_of_time import AheadOfTime, folder
from model.building import Size

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS = Size("rows"), Size("columns", least=1, multiple=4)


class Pair(NamedTuple):
    left: Tensor  # [R, C]
    right: Tensor  # [C]


def program(pair: Pair, factor: Tensor | None, power: int) -> tuple[Tensor, None, Pair]:
    scaled = pair.left * pair.right * (1.0 if factor is None else factor[:, None])
    return scaled.sum(1) ** power, None, Pair(scaled, pair.right + len(scaled))


def of_program(pair: Pair, factor: Tensor | None, power: int):
    return ({0: ROWS, 1: COLUMNS}, {0: COLUMNS}), factor is not None and {0: ROWS}, power


def asked(rows: int, columns: int, *, factor: bool = True, seed: int = 0):
    numbers = torch.Generator().manual_seed(seed)
    pair = Pair(torch.rand(rows, columns, generator=numbers), torch.rand(columns, generator=numbers))
    return pair, torch.rand(rows, generator=numbers) if factor else None, 2


def check(found, given):
    wanted = program(*given)
    assert type(found[2]) is Pair
    assert found[1] is None
    for one, other in zip((found[0], *found[2]), (wanted[0], *wanted[2]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture
def built(place, monkeypatch):
    """The names of what is compiled."""
    names: list[str] = []
    build = ahead_of_time.build

    def noting(flat, sizes, examples, options, path):
        build(flat, sizes, examples, options, path)
        names.append(path.name)

    monkeypatch.setattr(ahead_of_time, "folder", lambda: place)
    monkeypatch.setattr(ahead_of_time, "build", noting)
    return names


def test_two_threads_that_call_first_have_one_library(built, monkeypatch):
    load, loads, begin = AheadOfTime._loaded, [], threading.Barrier(2)

    def counting(*given):
        loads.append(given)
        time.sleep(0.05)
        return load(*given)

    monkeypatch.setattr(AheadOfTime, "_loaded", counting)
    run = AheadOfTime(program, of_program)

    def call(seed):
        given = asked(9, 8, seed=seed)
        begin.wait(10)
        check(run(*given), given)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, range(2)))
    assert len(loads) == 1


def test_two_threads_whose_program_does_not_compile_try_once(built, monkeypatch, caplog):
    tries, begin = [], threading.Barrier(2)

    def refuse(*given):
        tries.append(given)
        time.sleep(0.05)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(AheadOfTime, "_loaded", refuse)
    run = AheadOfTime(program, of_program, or_plain=True)

    def call(seed):
        given = asked(9, 8, seed=seed)
        begin.wait(10)
        check(run(*given), given)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, range(2)))
    assert len(tries) == 1
    assert caplog.text.count("program is not compiled: no compiler") == 1
    assert run.is_plain


def test_of_two_processes_one_compiles(tmp_path):
    """They start together, with a folder that is empty; both answer."""
    code = """
import sys
from model import ahead_of_time
from model.ahead_of_time import AheadOfTime
from tests.model.test_ahead_of_time import asked, check, of_program, program
build = ahead_of_time.build
ahead_of_time.build = lambda *given: (print("compiles", flush=True), build(*given))
print("ready", flush=True)
sys.stdin.readline()
given = asked(5, 8)
check(AheadOfTime(program, of_program)(*given), given)
"""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
                )
            )
            for _ in range(2)
        ]
        assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
        for one in both:
            one.stdin.write("go\n")
            one.stdin.flush()
        said = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert "".join(said) == "compiles\n"


def test_a_folder_that_nobody_may_write_to_is_read(built, place, monkeypatch):
    """A cache that came with an image: no lock is asked for where the library is there."""
    given = asked(6, 4)
    check(AheadOfTime(program, of_program)(*given), given)
    monkeypatch.setattr(ahead_of_time, "FileLock", lambda path: pytest.fail(f"{path} is to be written"))
    built.clear()
    check(AheadOfTime(program, of_program)(*given), given)
    assert built == []


@pytest.mark.parametrize("error", [OSError, NotImplementedError])
def test_where_there_are_no_locks_it_compiles_all_the_same(built, tmp_path, monkeypatch, error):
    def unlocked(path):
        raise error(f"no locks at {path}")

    monkeypatch.setattr(ahead_of_time, "folder", lambda: tmp_path)
    monkeypatch.setattr(ahead_of_time, "FileLock", unlocked)
    given = asked(5, 8)
    check(AheadOfTime(program, of_program)(*given), given)
    assert len(built) == 1


def test_one_library_is_for_all_sizes_and_the_next_process_finds_it(built):
    run = AheadOfTime(program, of_program)
    for rows, columns in ((3, 8), (2, 4), (500, 4), (37, 40)):
        check(run(*asked(rows, columns)), asked(rows, columns))
    assert len(built) <= 1
    later = AheadOfTime(program, of_program)
    check(later(*asked(5, 12)), asked(5, 12))
    assert len(built) <= 1


def test_only_so_many_sets_of_sizes_are_known_at_once(built, monkeypatch):
    monkeypatch.setattr(ahead_of_time, "KNOWN", 4)
    run = AheadOfTime(program, of_program)
    for rows in (*range(2, 12), *range(2, 12)):
        check(run(*asked(rows, 8)), asked(rows, 8))
        assert len(run._known) <= 4
    assert len(run._libraries) == 1
    assert len(built) <= 1


@pytest.fixture(scope="module")
def at_hand(place):
    """Nothing is compiled twice, so that examples are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_of_time, "folder", lambda: place)
        yield AheadOfTime(program, of_program)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 300), st.integers(1, 50), st.integers(0, 99))
def test_it_says_what_the_program_says(at_hand, rows, fours, seed):
    check(at_hand(*asked(rows, 4 * fours, seed=seed)), asked(rows, 4 * fours, seed=seed))


@pytest.mark.parametrize(("rows", "columns", "factor"), [(1, 8, True), (5, 6, True), (5, 8, False)])
def test_what_does_not_fit_has_a_library_of_its_own(built, rows, columns, factor):
    """One row, columns that are no multiple, and an argument that is not there."""
    run = AheadOfTime(program, of_program)
    run(*asked(5, 8))
    before = len(built)
    check(run(*asked(rows, columns, factor=factor)), asked(rows, columns, factor=factor))
    assert len(built) - before == 1


def test_columns_of_a_matrix_are_arguments_as_good_as_any(built):
    pair, factor, power = asked(6, 16)
    wide = Pair(pair.left.t().contiguous().t()[:, ::2], pair.right[::2])
    check(AheadOfTime(program, of_program)(wide, factor, power), (wide, factor, power))


def test_weights_are_the_modules_own(built):
    """Nothing of them is in the library: another module of the kind needs no new one, and what is learned later counts."""

    def sizes(_):
        return ({0: ROWS},)

    one, other = (nn.Linear(8, 3).eval().requires_grad_(requires_grad=False) for _ in range(2))
    x = torch.rand(4, 8)
    runs = [AheadOfTime(each, sizes, about="8 to 3") for each in (one, other)]
    for each, run in zip((one, other), runs, strict=True):
        torch.testing.assert_close(run(x), each(x))
    assert len(built) == 1
    one.weight.mul_(2)
    torch.testing.assert_close(runs[0](x), one(x))


def test_what_is_overwritten_is_overwritten_once(built):
    def program(sums, added):
        sums.add_(added)
        return sums * 2

    sums, added = torch.zeros(5), torch.arange(5.0)
    run = AheadOfTime(program, lambda *_: ({0: ROWS}, {0: ROWS}))
    assert run(sums, added).tolist() == [0, 2, 4, 6, 8]
    assert sums.tolist() == [0, 1, 2, 3, 4]
    assert run(sums, added).tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("kind", ["half of one", "something else"])
def test_what_is_no_library_is_compiled_again(built, monkeypatch, tmp_path, kind):
    paths: list[Path] = []
    load = ahead_of_time._load
    monkeypatch.setattr(ahead_of_time, "_load", lambda path: paths.append(path) or load(path))
    check(AheadOfTime(program, of_program)(*asked(5, 8)), asked(5, 8))
    there = tmp_path / paths[0].name
    if kind == "half of one":
        content = paths[0].read_bytes()
        there.write_bytes(content[: len(content) // 2])
    else:
        native.write(there, b"no library")
    monkeypatch.setattr(ahead_of_time, "folder", lambda: tmp_path)
    before = len(built)
    check(AheadOfTime(program, of_program)(*asked(5, 8)), asked(5, 8))
    assert built[before:] == [there.name]
    assert load(there) is not None


def test_names_tell_all_that_a_library_depends_on(monkeypatch):
    names = [ahead_of_time.named("program", kind) for kind in (1, 2)]
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    names.append(ahead_of_time.named("program", 1))
    monkeypatch.setattr(ahead_of_time, "_everywhere", lambda: ("another torch",))
    names.append(ahead_of_time.named("program", 1))
    assert len(set(names)) == 4


def test_other_code_is_another_name(monkeypatch, tmp_path):
    here = ahead_of_time._everywhere.__wrapped__
    before = here()
    model = ahead_of_time.Path(ahead_of_time.__file__).parent
    for source in model.glob("*.py"):
        shutil.copy(source, tmp_path)
    shutil.copytree(model / "cpp-headers", tmp_path / "cpp-headers")
    monkeypatch.setattr(ahead_of_time, "__file__", str(tmp_path / "ahead_of_time.py"))
    assert here() == before
    for other in ("cpp-headers/regex", "incremental.py"):
        kept = (tmp_path / other).read_text()
        (tmp_path / other).write_text("# other code")
        assert here() != before
        (tmp_path / other).write_text(kept)
    assert here() == before


def test_so_is_another_processor(monkeypatch):
    here = ahead_of_time._everywhere.__wrapped__
    before = here()
    monkeypatch.setattr(ahead_of_time.Path, "read_text", lambda *_: "processor: 0\nflags: fpu sse\n")
    assert here() != before


def test_weights_that_would_become_code_are_refused(built, monkeypatch):
    """As the compiler does with short vectors by default: whoever comes next would get somebody else's."""
    monkeypatch.setattr(building, "WITHOUT_WEIGHTS", {"aot_inductor.package_constants_in_so": False})
    run = AheadOfTime(nn.Linear(8, 3).eval().requires_grad_(requires_grad=False), lambda _: ({0: ROWS},), about="bias")
    with pytest.raises(RuntimeError, match="weights became part of the code: program.bias"):
        run(torch.rand(4, 8))
    assert built == []


def test_what_does_not_compile_raises_or_is_run_as_it_is(monkeypatch, built, caplog):
    def refuse(*_):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(ahead_of_time, "build", refuse)
    with pytest.raises(RuntimeError, match="no C"):
        AheadOfTime(program, of_program, about="never")(*asked(5, 8))
    run = AheadOfTime(program, of_program, about="never", or_plain=True)
    for _ in range(2):
        check(run(*asked(5, 8)), asked(5, 8))
    assert caplog.messages == ["program is not compiled: no C++ compiler found"]


def test_libraries_do_without_the_standard_regex(built, place):
    """Which is half of the time that it takes to compile a small one."""
    run = AheadOfTime(lambda x: x + 2, lambda _: ({0: ROWS},))
    assert run(torch.ones(5)).tolist() == [1 + 2] * 5
    content = (place / built[-1]).read_bytes()
    assert b"regex_match" in content
    assert b"regex_traits" not in content


@pytest.mark.parametrize(("before", "meanwhile"), [(None, ""), ("/somewhere", ":/somewhere")])
def test_our_headers_are_for_libraries_alone(monkeypatch, before, meanwhile):
    if before is None:
        monkeypatch.delenv("CPLUS_INCLUDE_PATH", raising=False)
    else:
        monkeypatch.setenv("CPLUS_INCLUDE_PATH", before)
    with building._headers_of_ours():
        assert os.environ["CPLUS_INCLUDE_PATH"] == f"{building.HEADERS}{meanwhile}"
    assert os.environ.get("CPLUS_INCLUDE_PATH") == before


def test_where_our_headers_do_not_do_the_standard_ones_are_taken(built, place, monkeypatch):
    tries = []

    def of_another_torch(path):
        tries.append(path)
        if len(tries) == 1:
            raise RuntimeError("this <regex> does not know (cuda|cpu)")
        return native.Library(path)

    monkeypatch.setattr(building, "Library", of_another_torch)
    run = AheadOfTime(lambda x: x + 3, lambda _: ({0: ROWS},))
    assert run(torch.ones(5)).tolist() == [1 + 3] * 5
    assert len(set(tries)) == 2  # under another name, for the first may be loaded
    assert b"regex_traits" in (place / built[-1]).read_bytes()


def test_operators_that_are_the_loaders_alone_are_refused(built):
    """A library that asks for one is no library for us; better to know when it is made than in each pass."""
    with pytest.raises(RuntimeError, match=r"torch's own loader's alone: aten::pow\.Scalar"):
        AheadOfTime(lambda x: 2 ** x.long(), lambda _: ({0: ROWS},))(torch.rand(5))
    assert built == []


def test_two_dimensions_that_are_one_must_be_said_to_be(built):
    """What is traced with sizes of its own finds that out, before anything is answered wrongly."""
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        AheadOfTime(lambda x, y: x * y, lambda *_: ({0: Size("a")}, {0: Size("b")}))(torch.rand(5), torch.rand(5))


def test_arguments_have_places_not_names():
    with pytest.raises(TypeError, match="given by their places, not as x"):
        AheadOfTime(lambda x: x + 1, lambda _: ({0: ROWS},))(x=torch.rand(3))


def test_libraries_lie_beside_torchs_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert folder() == tmp_path / "ahead_of_time"
