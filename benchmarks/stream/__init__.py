"""The stream path: events from a topic, state per user, an answer per event to a topic; `python -m benchmarks.stream`."""
