"""Real workers and decoders without a gateway around them, each gone at the end, whatever the end is.

The core would choose what they do; here they are asked directly, so that one thing is measured at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from gateway.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BURIAL_TIMEOUT_S = 5.0
BURIAL_POLL_S = 0.01


@contextlib.asynccontextmanager
async def supervised() -> AsyncIterator[Supervisor]:
    """A supervisor whose children are killed and reaped when the block ends."""
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(loop)
    try:
        yield supervisor
    finally:
        supervisor.stopping = True
        for child in list(supervisor.children.values()):
            child.kill()
        end = loop.time() + BURIAL_TIMEOUT_S
        while supervisor.children and loop.time() < end:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(BURIAL_POLL_S)
