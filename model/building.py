"""A program becomes a library on disk: torch.export traces it, AOTInductor writes C++, and the machine's compiler does the rest.

That compiler is given a shorter <regex> than the standard one (`model/cpp-headers`), which each library otherwise compiles anew to read the
name of a device: half of the time that a small one takes.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.native import Library, write

log = logging.getLogger("nextmove")

HEADERS = Path(__file__).parent / "cpp-headers"
AS_THEY_ARE = {"aot_inductor.precompile_headers": False}  # what was precompiled has ours in it
LOOKED_AT_FIRST = "CPLUS_INCLUDE_PATH"  # folders with headers that gcc and clang prefer to their own


class Size(NamedTuple):
    """A dimension of any size that is a multiple of `multiple` and at least `least` times that; a smaller one is fixed."""

    name: str
    least: int = 2
    multiple: int = 1

    def fits(self, size: int) -> bool:
        """Whether a library for any size is one for this."""
        return size % self.multiple == 0 and size >= self.least * self.multiple


Sizes = Mapping[int, Size]  # by dimension; those that are not named are fixed

# Weights are given when a library is loaded; small ones too, which would become part of the code by default
WITHOUT_WEIGHTS = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}


def build(
    flat: nn.Module,
    sizes: Sequence[Sizes],
    examples: Sequence[Tensor],
    options: Mapping[str, Any],
    path: Path,
) -> None:
    """Compiles a library of this name, of a program of tensors and for examples of them; whole or not at all.

    One thread at a time may call it. Raises RuntimeError or OSError where the program or the machine does not do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {size.name: size for of_one in sizes for size in of_one.values()}
    any_ = {name: torch.export.Dim(name, min=size.least) for name, size in names.items()}
    dims = [
        {
            place: any_[size.name] * size.multiple if size.multiple > 1 else any_[size.name]
            for place, size in one.items()
        }
        for one in sizes
    ]
    with (
        warnings.catch_warnings(action="ignore"),
        torch.inference_mode(False),
        torch.no_grad(),
        tempfile.TemporaryDirectory(dir=path.parent) as aside,
    ):
        given = tuple(torch.zeros_like(each) for each in examples)  # none that were made in inference mode
        exported = torch.export.export(flat, given, dynamic_shapes=(tuple(dims),), strict=True)
        for graph in exported.graph_module.modules():
            if isinstance(graph, torch.fx.GraphModule):
                _drop_types(graph)
        alone = Path(aside) / "library.so"
        try:
            with _headers_of_ours():
                library = _compiled(exported, options, alone)
        except _Refused:
            raise
        except (OSError, RuntimeError) as error:  # where it is not for our headers that it fails, it does so again
            log.info("compiled with no header of ours: %s", " ".join(str(error).split())[:200])
            alone = alone.with_stem("standard")  # one that is loaded once more is the same as before
            library = _compiled(exported, {**options, **AS_THEY_ARE}, alone)
        left_out = library.weights
        if left_out != _weights_in(exported):
            raise RuntimeError(
                f"weights became part of the code: {', '.join(sorted(_weights_in(exported) - left_out))}"
            )
        alone.replace(path)


def _compiled(exported: torch.export.ExportedProgram, options: Mapping[str, Any], path: Path) -> Library:
    """A library of that name, which was seen to load."""
    from torch._inductor import aoti_compile_and_package

    package = aoti_compile_and_package(
        exported,
        package_path=str(path.with_suffix(".pt2")),
        inductor_configs={**options, **WITHOUT_WEIGHTS},
    )
    write(path, _library_in(Path(package)))
    return Library(path)


@contextmanager
def _headers_of_ours() -> Iterator[None]:
    """What is compiled meanwhile, by any thread, takes our headers where there is one of that name."""
    before = os.environ.get(LOOKED_AT_FIRST)
    os.environ[LOOKED_AT_FIRST] = os.pathsep.join(filter(None, (str(HEADERS), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOOKED_AT_FIRST]
        else:
            os.environ[LOOKED_AT_FIRST] = before


class _Refused(RuntimeError):
    """A program that is none for a library, whatever compiles it."""


def _library_in(package: Path) -> bytes:
    """The library of a package. Raises _Refused where it needs more than itself: operators that only torch's own loader calls."""
    with zipfile.ZipFile(package) as files:
        (library,) = [name for name in files.namelist() if name.endswith(".so")]
        told = library.removesuffix(".so") + ".json"  # written only where there is something to tell
        nodes = (
            [one["node"]["target"] for one in json.loads(files.read(told))["nodes"]] if told in files.namelist() else []
        )
        if nodes:
            raise _Refused(f"the program has operators that are torch's own loader's alone: {', '.join(nodes)}")
        return files.read(library)


def _weights_in(exported: torch.export.ExportedProgram) -> set[str]:
    """The names of those that a program looks at."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {
        names[node.name] for node in exported.graph.find_nodes(op="placeholder") if node.users and node.name in names
    }


def _drop_types(graph: torch.fx.GraphModule) -> None:
    """Without what makes sure of types: those below autocast are settled later."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001
            graph.graph.erase_node(node)
    graph.recompile()
