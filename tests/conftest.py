"""What every test is under: no answer of a gateway that a module talked to may leak anything of the machine."""

from __future__ import annotations

import pytest

from tests.support import gateways


@pytest.fixture(autouse=True, scope="module")
def nothing_leaks():
    yield
    gateways.assert_nothing_leaks()
