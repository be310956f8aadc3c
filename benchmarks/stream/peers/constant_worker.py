"""`nextmove worker` as it is, but for the model, whose place a constant takes: `--window N` is its number of events."""

from __future__ import annotations

import argparse
import sys

import stream_app.worker
from benchmarks.stream.peers.constant_predictor import ConstantPredictor
from model.window import WindowRule
from stream_app.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--window", type=int, default=100, help="events of a window")
    predictor = ConstantPredictor(WindowRule(events=parser.parse_args().window))
    vars(stream_app.worker)["load_engine"] = lambda _: predictor
    sys.argv = ["nextmove", "worker"]
    main()
