"""`python -m gateway.tuning FD`: the gateway under test. FD holds the order, its only argument; not started by hand."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import msgspec

from gateway import server
from gateway.config import Settings
from gateway.models.repository import read_version
from gateway.models.spec import Contract
from gateway.tuning.live import Order
from shm import heritage

EXIT_USAGE = 64


def main(arguments: list[str]) -> int:
    """Serve as ordered until SIGTERM; returns the exit code."""
    try:
        with os.fdopen(int(arguments[0]), "rb") as file:
            order = msgspec.json.decode(file.read(), type=Order)
    except (IndexError, ValueError, OSError):
        sys.stderr.write("penstock: started by `penstock tune`, with the descriptor of its order; not by hand\n")
        return EXIT_USAGE
    heritage.die_with(order.parent)
    model = msgspec.structs.replace(
        read_version(Path(order.directory)), contract=msgspec.json.decode(order.contract, type=Contract)
    )
    settings = msgspec.json.decode(order.settings, type=Settings)
    return server.serve(settings, [model], socket.socket(fileno=order.listen_fd))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
