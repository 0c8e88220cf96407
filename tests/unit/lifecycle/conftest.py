from __future__ import annotations

import pytest

from tests.support.plant import play


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def go(root, monkeypatch):
    """Play a story over the repository, without the waits that are for people and disks."""
    monkeypatch.setattr("gateway.lifecycle.changes.SETTLE_S", 0.0)
    return lambda story, **settings: play(root, story, monkeypatch, **settings)
