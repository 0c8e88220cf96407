"""BentoML: its own server, one worker process per core, the service's method inline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml
from work import CORES, PORT, Work


# One worker per core, no limit on concurrency (its default), no line per request. Without its batcher: on a CPU
# a batch costs as much as its images, and the batcher's window would only delay them.
# Source: BentoML, "Workers", "Concurrency" and "Configurations", https://docs.bentoml.com/en/latest/guides/workers.html
@bentoml.service(
    workers=CORES,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Photos:
    """Answers JPEGs."""

    def __init__(self) -> None:
        self._work = Work()

    @bentoml.api(route="/predict")
    async def predict(self, image: bytes, /) -> bytes:
        return self._work.reply(image)


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    command = ["bentoml", "serve", "serve_bentoml:Photos", "--host", "127.0.0.1", "--port", str(PORT)]
    os.execv(sys.executable, [sys.executable, "-m", *command, "--working-dir", here])
