"""A worker whose consumer takes 0.3 s longer to seek, as over a slow network: a program for `test_intake_starts.py`."""

import asyncio
import sys
from typing import Any

from faust.transport.consumer import Consumer

from stream_app.cli import main

seek = Consumer.perform_seek


async def seek_slowly(self: Any) -> None:
    await seek(self)
    await asyncio.sleep(0.3)


Consumer.perform_seek = seek_slowly

if __name__ == "__main__":
    sys.argv[0] = "nextmove"
    main()
