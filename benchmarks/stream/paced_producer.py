"""A producer that sends at an even rate: `python -m benchmarks.stream.paced_producer BROKER TOPIC RATE SECONDS SEED`.

Records go out in ticks of a millisecond, as many as are due; when it falls behind it catches up, so that the rate holds.
It ends with the number sent on standard output.
"""

from __future__ import annotations

import sys
import time

from benchmarks.stream.loads import skewed
from benchmarks.stream.topics import delivering

TICK_S = 0.001
LINGER_MS = 5


def main(broker: str, topic: str, rate: str, seconds: str, seed: str) -> None:
    """Send `rate` events per second for `seconds`."""
    total = int(float(rate) * float(seconds))
    records = skewed(total, seed=int(seed)).records
    sent = 0
    with delivering(broker, LINGER_MS) as produce:
        start = time.monotonic()
        while sent < total:
            due = min(int((time.monotonic() - start) * float(rate)) + 1, total)
            for key, value in records[sent:due]:
                produce(topic, value, key)
            sent = due
            time.sleep(TICK_S)
    sys.stdout.write(f"{sent}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
