from __future__ import annotations

from gateway.patience import Patience


def test_a_limit_stands_still_while_engines_are_built():
    now, building = 100.0, False
    patience = Patience(10.0, lambda: building, lambda: now)

    now = 104.0
    assert patience.left_s() == 6.0
    now, building = 1104.0, True
    assert patience.left_s() == 6.0
    now, building = 1109.0, False
    assert patience.left_s() == 1.0
    now = 1110.0
    assert patience.left_s() == 0.0
