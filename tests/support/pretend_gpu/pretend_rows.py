"""Gives a fake model on a GPU the pretend card's own engine, which overlaps; only where the environment asks for it.

PENSTOCK_PRETEND_ENGINE   "1": `backend = "fake"` on cuda runs on the card. "alone": so that it does not overlap
"""

import os

ENGINE = "PENSTOCK_PRETEND_ENGINE"


def install(backend):
    """Put the row into gpuworker.backend.ENGINES."""
    if os.environ.get(ENGINE):
        backend.ENGINES["fake", "cuda"] = ("pretend_engine", "PretendBackend")
