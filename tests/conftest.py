"""What every test is under: no answer of a gateway may leak anything of the machine, and none is found by others."""

from __future__ import annotations

import tempfile

import pytest

from tests.support import gateways


@pytest.fixture(autouse=True, scope="module")
def nothing_leaks():
    yield
    gateways.assert_nothing_leaks()


@pytest.fixture(autouse=True, scope="session")
def own_folders():
    """Gateways that a test starts by itself find none of this machine's, and leave nothing in its home."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pst-") as folder:
        for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("XDG_STATE_HOME", folder + "/state")
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test logs may hold what no text may (lone surrogates), and reports travel between processes as UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
