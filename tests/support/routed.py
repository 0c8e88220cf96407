"""A gateway that serves every version and routes by wants from a file, read anew on SIGUSR1. Run by test_routes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from gateway import config, server
from gateway.lifecycle.desired import Want
from gateway.lifecycle.routes import Standing, build


async def route(gateway: server.Gateway) -> None:
    def read() -> None:
        wants = msgspec.json.decode(file.read_bytes(), type=dict[str, Want])
        standings: dict[str, dict] = {}
        for line in gateway.driver.core.lines:
            model = gateway.driver.models[line.index]
            standings.setdefault(model.name, {})[model.version] = line
        gateway._front.predict.routes = build(
            {name: Standing(wants.get(name, Want()), lines) for name, lines in standings.items()}
        )
        file.with_suffix(".read").write_bytes(file.read_bytes())

    file = Path(sys.argv[2])
    read()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, read)
    await server.forever(gateway)


if __name__ == "__main__":
    settings = config.load(None, os.environ, {"models": sys.argv[1], "port": 0, "versions": "all"})
    sys.exit(server.run(settings, route))
