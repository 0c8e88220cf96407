"""Whether every backend gives the CPU's answers on real photos: the same best class, and how near its scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu_lab.backends import ENGINES, LEAST_S, SHARE_MAX
from bench.gpu_lab.models import Case
from bench.gpu_lab.part import spawn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

CPU = "cpu"
"""Stands for a precision: what every other one is compared with."""


def answer_file(folder: Path, case: Case) -> Path:
    """float32[photos, classes] of scores, as the graph gives them, for each batch size."""
    return folder / f"answers_{case.slug}.npz"


def measure(plan: Plan, notes: Notes) -> None:
    """The first model: it has real weights."""
    folder, name = Path(plan.folder), plan.scale.models[0]
    right = Case(name, "onnxruntime", CPU)
    for case in (right, *(Case(name, *engine) for engine in ENGINES)):
        if plan.left_s < LEAST_S:
            notes.remark(f"answers, {case}: not measured: no time was left")
            continue
        end_s = plan.end_s - (1 - SHARE_MAX) * plan.left_s
        own = dataclasses.replace(plan, part="answer", case=str(case), end_s=end_s)
        if failure := spawn(own, f"answers_{case.slug}"):
            notes.problem(f"answers, {case}", failure)
            continue
        if case is not right and answer_file(folder, case).exists():
            with notes.guarded(f"answers, {case}"):
                _compare(case, answer_file(folder, right), answer_file(folder, case), notes)


def _compare(case: Case, right_file: Path, file: Path, notes: Notes) -> None:
    with np.load(right_file) as right_arrays, np.load(file) as arrays:
        right = right_arrays[min(right_arrays.files, key=int)]
        worst, same, count = 0.0, 0, 0
        for size in sorted(arrays.files, key=int):
            scores = arrays[size]
            difference = float(np.abs(_softmax(scores) - _softmax(right)).max())
            agree = int((scores.argmax(axis=1) == right.argmax(axis=1)).sum())
            notes.row(
                "answers against the CPU's",
                case=str(case),
                size=size,
                photos=len(scores),
                same_best_class=agree,
                largest_difference_of_scores=float(np.abs(scores - right).max()),
                largest_difference_of_probabilities=difference,
            )
            worst, same, count = max(worst, difference), same + agree, count + len(scores)
    notes.figure(f"answers_same_{case.slug}", same / count, "ratio")
    notes.figure(f"answers_difference_{case.slug}", worst, "probability")
    notes.result(
        f"answers, {case}", f"{same} of {count} best classes as the CPU's", f"probabilities within {worst:.1e}"
    )
    if same < count:
        notes.problem(f"answers, {case}", f"{count - same} of {count} best classes are not the CPU's")


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
