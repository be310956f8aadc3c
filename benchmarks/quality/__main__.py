"""`python -m benchmarks.quality ROW --data DIR --json FILE` measures a row; `… report` writes the table from all rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import setting
from benchmarks.quality.report import write_report
from benchmarks.quality.rows import ROWS
from model.callbacks import Callback, Progress
from model.config import PRESETS

HERE = Path(__file__).parent
DATA = setting.ROOT.parent / "shared" / "data"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for."""
    options = parse(arguments)
    if options.row != "report":
        row = ROWS[options.row]
        given = {
            name: value for name, value in (("preset", options.preset), ("budget_s", options.time_budget)) if value
        }
        found = row.measure(options.data, Notes(), seed=options.seed, **given)
        place = options.json or HERE / "results" / f"{options.row}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"row": options.row, **found, **setting.describe()}, indent=2) + "\n")
    write_report(HERE / "results", HERE / "README.md")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("row", choices=[*ROWS, "report"])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the public logs")
    parser.add_argument("--json", type=Path, help="where the figures go; default: results/ROW.json beside the program")
    parser.add_argument("--preset", choices=list(PRESETS), help="size of the network; default: the row's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-budget", type=float, metavar="SECONDS", help="learn no longer than this")
    return parser.parse_args(arguments)


class Notes(Callback):
    """One line per validation."""

    def on_step(self, progress: Progress) -> None:
        """Writes it to stderr."""
        if progress.found:
            sys.stderr.write(", ".join(f"{name} {value:.4f}" for name, value in progress.found.items()) + "\n")
            sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
