"""Samples of a profiler sorted into stages."""

import pytest

from benchmarks.stream.suites.profile import stage_of

WORKER = "main (stream_app/cli.py:318);run_forever (asyncio/base_events.py:607);"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (
            "Pipeline.fold (stream_app/pipeline.py:1);fold (stream_app/history.py:9);_last (stream_app/history.py:1)",
            "fold",
        ),
        (
            "Pipeline.fold (stream_app/pipeline.py:1);HistoryCache.of (stream_app/history_cache.py:1);decode (stream_app/history_codec.py:9)",
            "check stored histories",
        ),
        ("PredictionAgent.run (stream_app/agent.py:92);Stream.__anext__ (faust/streams.py:5)", "Faust"),
        ("Sender._deliver (aiokafka/producer/sender.py:1)", "aiokafka: producer"),
        ("BaseEventLoop._run_once (asyncio/base_events.py:1)", "event loop"),
    ],
)
def test_the_innermost_function_of_ours_decides(stack: str, stage: str) -> None:
    assert stage_of((WORKER + stack).split(";")) == stage
