"""A worker whose device is busy for as long as the file that it is given exists: for `test_chunks.py`."""

import sys
import time
from pathlib import Path
from typing import Any

from stream_app.cli import main
from stream_app.pipeline import Pipeline

infer = Pipeline.infer
hold = Path(sys.argv[1])


def infer_when_free(self: Any, windows: Any) -> Any:
    while hold.exists():
        time.sleep(0.02)
    return infer(self, windows)


Pipeline.infer = infer_when_free  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.argv = ["nextmove", "worker"]
    main()
