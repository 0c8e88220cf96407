"""What `backend = "fake"` is on a pretend GPU; without the environment's word, what it is anywhere.

PENSTOCK_PRETEND_ENGINE  "1": the pretend card's own engine, which overlaps; "alone": so that it does not overlap;
                         "memory": the fake backend, which holds its `memory_size` on the card
"""

import os

ENGINE = "PENSTOCK_PRETEND_ENGINE"


def install(backend):
    """Put the row into gpuworker.backend.ENGINES."""
    wanted = os.environ.get(ENGINE)
    if wanted == "memory":
        backend.ENGINES["fake", "cuda"] = ("pretend_on_gpu", "FakeOnGpu")
    elif wanted:
        backend.ENGINES["fake", "cuda"] = ("pretend_engine", "PretendBackend")
