"""A worker whose fetches find their records 0.3 s late, and whose seek takes 0.5 s: for `test_intake_starts.py`."""

import asyncio
import sys
from typing import Any

from aiokafka.consumer.fetcher import Fetcher
from faust.transport.consumer import Consumer

from stream_app.cli import main

seek, fetched_records = Consumer.perform_seek, Fetcher.fetched_records


async def seek_slowly(self: Any) -> None:
    await seek(self)
    await asyncio.sleep(0.5)


async def fetch_late(self: Any, *arguments: Any, **options: Any) -> Any:
    await asyncio.sleep(0.3)
    return await fetched_records(self, *arguments, **options)


Consumer.perform_seek = seek_slowly
Fetcher.fetched_records = fetch_late

if __name__ == "__main__":
    sys.argv[0] = "nextmove"
    main()
