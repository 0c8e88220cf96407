"""A front whose changes are only remembered, and a command line that knows nothing of this machine."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gateway.admin import client
from gateway.cli import app
from tests.support.admin import TOKEN, admin_server


@pytest.fixture(scope="session")
def front(tmp_path_factory):
    with admin_server(tmp_path_factory.mktemp("admin")) as server:
        yield server


@pytest.fixture
def admin(front):
    front.changes.__init__()
    return front


@pytest.fixture
def type_in(monkeypatch, tmp_path):
    """Type a command; no setting of this machine counts."""
    for name in ("PENSTOCK_ADMIN_SOCKET", "PENSTOCK_PORT", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(client, "LOOK_S", 0.01)

    def call(*arguments, **environ):
        found = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300", **environ})
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found

    return call


@pytest.fixture
def run(admin, type_in):
    """The same, with the socket of the front."""
    return lambda *arguments: type_in(*arguments, "--socket", admin.path)


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file
