"""A worker that loads no other model while the file that it is given exists, and says so: for `test_model_swaps.py`."""

import sys
import time
from pathlib import Path
from typing import Any

import stream_app.worker
from stream_app.cli import main
from stream_app.serving import load_successor

hold = Path(sys.argv[1])


def load_when_free(directory: Any, settings: Any) -> Any:
    if hold.exists():
        hold.with_suffix(".waiting").touch()
    while hold.exists():
        time.sleep(0.02)
    return load_successor(directory, settings)


vars(stream_app.worker)["load_successor"] = load_when_free

if __name__ == "__main__":
    sys.argv = ["nextmove", "worker"]
    main()
