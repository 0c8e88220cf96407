"""What a gateway says of itself to its operator, as a whole; its models and workers are for `lifecycle` to say."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.driver import Driver

_STATM = Path("/proc/self/statm")


class GatewayFacts:
    """Reads them off the driver. `url`: where the public front is; `drain`: what SIGTERM does."""

    def __init__(self, driver: Driver, url: str, drain: Callable[[], None]) -> None:
        self._driver = driver
        self._url = url
        self._begun = time.monotonic()
        self._draining = False
        self._ask_drain = drain

    def status(self) -> dict[str, Any]:
        """As plain data; sizes in bytes."""
        core = self._driver.core
        draining = self._draining or core.draining
        return {
            "version": __version__,
            "pid": os.getpid(),
            "url": self._url,
            "uptime_s": round(time.monotonic() - self._begun, 1),
            "status": "draining" if draining else "ready" if core.is_ready else "not_ready",
            "in_flight": core.live_count,
            "decoders_ready": sum(decoder.ready for decoder in core.feeder.decoders),
            "memory": {
                "gateway": int(_STATM.read_text().split()[1]) * resource.getpagesize(),
                "bodies": core.bodies.held_size,
                "bodies_max": core.bodies.size,
            },
        }

    def drain(self) -> None:
        """Begin to go down. Asked again, it goes on as it does: only a second signal hurries."""
        if not self._draining:
            self._draining = True
            self._ask_drain()
