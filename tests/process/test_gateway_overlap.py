"""A whole gateway whose worker has two batches in flight on the pretend card: it is killed in the middle of them, again
and again, and the checker of bench/faults.py accounts for every request.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bench.faults_lab.kills import PATIENT
from bench.faults_lab.ledger import Verdict
from bench.faults_lab.trial import Lab
from tests.support import pretend
from tests.support.gateways import ROOT

pytestmark = pytest.mark.slow


def on_card(folder, **extra):
    """What a gateway and its children need to find the pretend card, and a fake model's engine on it."""
    path = os.pathsep.join([str(pretend.FOLDER), str(ROOT)])
    return {"PYTHONPATH": path, "PENSTOCK_PRETEND_DIR": str(folder), "PENSTOCK_PRETEND_ENGINE": "1", **extra}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_dies_with_batches_in_flight(tmp_path, number):
    lab = Lab(seed=1)

    async def story():
        settings = {**PATIENT, "decoders": 1, "devices": "cuda:0"}
        # A batch takes longer than a request stays away, so that there is always one in flight and one behind it.
        model = {"batching": {"sizes": [1, 2]}, "fake": {"base_ms": 20.0}}
        environ = on_card(tmp_path, PENSTOCK_PRETEND_COPY_MS="2")
        async with lab.trial("overlap", rate=50.0, model=model, settings=settings, environ=environ) as trial:
            await trial.nemesis.strike_often(
                "worker",
                0,
                4,
                (number,),
                in_batch=None,
                spread_s=0.1,
                told=trial.struck,
                employ=lambda: trial.burst(12),
            )
            await trial.target.wait_up("worker", 0)
            status, page = await trial.target.get("/metrics")
            assert status == 200
            assert b'penstock_batch_seconds_count{model="m/1",part="compute"}' in page

    asyncio.run(story())
    (row,) = lab.rows.values()
    assert row.problems == []
    assert row.faults > 0
    assert row.verdicts[Verdict.OK] > 0
    assert {verdict for verdict, count in row.verdicts.items() if count} <= {
        Verdict.OK,
        Verdict.EXCUSED,
        Verdict.REFUSED,
    }
    # Two blows can hit the same image: then it is refused, by name.
    assert set(row.codes) <= {"ok", "worker_lost", "poisoned"}
