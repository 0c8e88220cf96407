"""Every model on every backend and precision, each in a process of its own: an engine that crashes costs no other."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bench.gpu_lab.models import Case
from bench.gpu_lab.part import spawn

if TYPE_CHECKING:
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

ENGINES = (
    ("onnxruntime", "float32"),
    ("onnxruntime", "float16"),
    ("tensorrt", "float16"),
    ("tensorrt", "float32"),
)
LEAST_S = 5.0
"""Less than this is not worth a start."""
SHARE_MAX = 0.6
"""Of the time that is left, for one case: a build that takes too long leaves some for the others."""


def measure(plan: Plan, notes: Notes) -> None:
    """Case by case, ONNX Runtime first: it builds nothing."""
    for backend, precision in ENGINES:
        for name in plan.scale.models:
            case = Case(name, backend, precision)
            if plan.left_s < LEAST_S:
                notes.remark(f"{case}: not measured: no time was left")
                continue
            end_s = plan.end_s - (1 - SHARE_MAX) * plan.left_s
            own = dataclasses.replace(plan, part="case", case=str(case), end_s=end_s)
            if failure := spawn(own, case.slug):
                notes.problem(str(case), failure)
