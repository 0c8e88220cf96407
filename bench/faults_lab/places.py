"""Named failpoints: children die, stop or dawdle at every step of their lives, drawn by a seed in each process."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bench.faults_lab.kills import PATIENT

if TYPE_CHECKING:
    from bench.faults_lab.trial import Lab

BIRTH = (
    "worker.after_inherit",
    "worker.before_load",
    "worker.after_session",
    "worker.before_ready",
    "decoder.after_inherit",
    "decoder.before_ready",
)
WORK = (
    "worker.before_gather",
    "worker.before_run",
    "worker.after_run",
    "worker.before_reply",
    "worker.after_reply",
    "decoder.before_decode",
    "decoder.after_decode",
    "decoder.before_reply",
)

GATEWAY = (
    "gateway.before_spawn",
    "gateway.after_spawn",
    "gateway.before_decode",
    "gateway.before_batch",
    "gateway.before_answer",
)
CHANGE = ("gateway.before_change", "gateway.before_switch", "gateway.after_switch", "gateway.before_unload")

STEPS = (
    # (in words, places, action, share of the passes)
    ("killed at birth", BIRTH, "kill", 0.2),
    ("crashed at birth", BIRTH, "crash", 0.2),
    ("killed at work", WORK, "kill", 0.01),
    ("crashed at work", WORK, "crash", 0.01),
    ("stopped at work", [place for place in WORK if place.startswith("worker")], "hang", 0.01),
    ("failed at work", [place for place in WORK if place != "worker.after_reply"], "error", 0.01),
    ("slow at work", WORK, "delay:30", 0.1),
    ("gateway: slow", (*GATEWAY, "gateway.after_reap"), "delay:20", 0.05),
    ("gateway: out of descriptors", GATEWAY[:2], "error:EMFILE", 0.3),
    ("gateway: a defect of ours", GATEWAY, "error", 0.01),
)


async def steps(lab: Lab, seconds: float) -> None:
    """Every place of one kind at once, under load, for so many seconds each; for the births, workers are killed too."""
    for words, places, action, share in STEPS:
        environ = {
            "PENSTOCK_FAILPOINTS": ",".join(f"{place}={action}~{share}" for place in places),
            "PENSTOCK_FAILPOINTS_SEED": str(lab.seed),
        }
        settings = {**PATIENT, "decoders": 2, "devices": "cpu,cuda:0"}
        model = {"fake": {"base_ms": 5.0}}
        name = f"failpoints: {words}"
        defects = action == "error" and places is GATEWAY
        async with lab.trial(
            name, rate=60.0, model=model, settings=settings, environ=environ, defects=defects
        ) as trial:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if places is BIRTH or words.startswith("gateway"):
                    await trial.strike_all()
                await asyncio.sleep(0.5)
            trial.target.poll()
            # What these deal out is in the log; the gateway's clock for it is the other one.
            since = time.monotonic() - time.time()
            for life in trial.target.lives.values():
                if life.died_s:
                    trial.struck(life.died_s + since)
            if action.startswith("delay"):
                trial.struck()
