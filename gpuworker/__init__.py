"""The worker process: pixels in slots to outputs in slots, one per device, one thread, no asyncio."""
