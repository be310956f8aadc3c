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
    parser.add_argument("--forecasts", type=int, default=1, help="different ones, which take turns")
    options = parser.parse_args()
    predictor = ConstantPredictor(WindowRule(events=options.window), options.forecasts)
    vars(stream_app.worker)["load_engine"] = lambda _: predictor
    sys.argv = ["nextmove", "worker"]
    main()
