"""The demo model, built once as the demo builds it, and one gateway that serves it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.gateways import ROOT, gateway


def penstock(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, in a wide terminal, without settings of the machine it is tested on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=ROOT,
        env={**kept, "COLUMNS": "200", **environ},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """(what `penstock demo --once` said on an empty cache, that cache)."""
    cache = tmp_path_factory.mktemp("cache")
    return penstock("demo", "--once", "--port", "0", XDG_CACHE_HOME=str(cache)), cache


@pytest.fixture(scope="session")
def models(shown):
    """The repository that the demo has left."""
    return shown[1] / "penstock" / "models"


@pytest.fixture(scope="session")
def running(models):
    with gateway(models, decoders=1) as running:
        yield running
