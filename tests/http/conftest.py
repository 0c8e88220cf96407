"""The gateways that the modules here share. A test that breaks one starts its own."""

from __future__ import annotations

import pytest

from tests.support.admin import admin_server
from tests.support.gateways import gateway, write_model


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Models that answer at once: `m` (two versions), `ranked` (five labels), `raw` and `few` (small limits)."""
    root = tmp_path_factory.mktemp("plain")
    write_model(root, "m", special=True, limits={"pixels_max": 4_000_000})
    write_model(root, "m", 3, special=True)
    write_model(
        root,
        "ranked",
        labels=["ant", "bee", "cat", "dog", "eel"],
        output={"top_k": 3, "top_k_max": 4},
        fake={"class_count": 5},
    )
    write_model(root, "raw", output={"task": "raw"})
    write_model(root, "few", limits={"images_max": 2, "deadline_ms": 5000.0, "deadline_ms_max": 6000.0})
    with gateway(root, versions="all", decoders=2, body_size_max=1 << 20, bodies_size_max=16 << 20) as running:
        yield running


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """`m`: one image at a time, each 0.4 s, and four may wait. `wide`: 0.2 s, and many may wait."""
    root = tmp_path_factory.mktemp("slow")
    one = {"batching": {"sizes": [1]}}
    write_model(root, "m", **one, fake={"base_ms": 400.0}, limits={"queue_max": 4})
    write_model(root, "wide", **one, fake={"base_ms": 200.0})
    with gateway(root, bodies_size_max=2 << 20, body_size_max=1 << 20, body_timeout_s=1.0, body_rate_grace_s=0.3) as it:
        yield it


@pytest.fixture(scope="session")
def admin_front(tmp_path_factory):
    """An admin front without a gateway behind it."""
    with admin_server(tmp_path_factory.mktemp("admin")) as server:
        yield server


@pytest.fixture
def admin(admin_front):
    """The same, with changes that know nothing yet."""
    admin_front.changes.__init__()
    return admin_front
