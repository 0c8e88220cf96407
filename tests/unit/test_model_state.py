from __future__ import annotations

from pathlib import Path

import pytest

from gateway.http import openapi
from gateway.model_state import STATES, ModelState, Stage

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_state_is_in_the_docs_and_in_the_document():
    text = DOCS.read_text()
    described = openapi.document([])["paths"]["/models"]["get"]["summary"]
    for state, meaning in STATES.items():
        assert f"| `{state}` | {meaning} |" in text
        assert f"{state}: {meaning}" in described


def test_an_engine_that_several_workers_build_is_as_far_as_the_slowest_is():
    state = ModelState()
    assert state.built_share is None
    state.loading = {3: Stage("building", 0.5), 4: Stage("building", 0.25), 5: Stage("warmup", 0.0)}
    assert state.built_share == 0.25
    state.loading = {3: Stage("session", 0.5)}
    assert state.built_share is None


@pytest.mark.parametrize(
    ("before", "stage", "logged"),
    [
        (None, Stage("building", 0.0), True),
        (Stage("session", 0.0), Stage("building", 0.3), True),
        (Stage("building", 0.0), Stage("building", 0.24), False),
        (Stage("building", 0.24), Stage("building", 0.26), True),
        (Stage("building", 0.26), Stage("building", 0.26), False),
        (None, Stage("session", 0.0), False),
    ],
)
def test_the_log_has_the_beginning_and_every_quarter(before, stage, logged):
    assert stage.is_milestone(before) is logged
