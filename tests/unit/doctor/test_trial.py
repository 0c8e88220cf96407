"""The trial model: a wrong answer is seen, a refusal is told, and a child that dies is no report."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.config import Settings
from gateway.doctor import child, trial
from gateway.errors import InvalidSettings
from gpuworker.doctor import machine


def convolved(pixels):
    """By hand, one place after the other."""
    out, weights = trial.SIDE - trial.KERNEL + 1, trial._weights()
    found = np.zeros((trial.FEATURES, out, out), np.float32)
    for y in range(out):
        for x in range(out):
            window = pixels[y : y + trial.KERNEL, x : x + trial.KERNEL].astype(np.float32)
            found[:, y, x] = (weights * window.transpose(2, 0, 1)).sum((1, 2, 3))
    return found


def test_a_right_answer_is_right_and_one_wrong_number_is_not():
    pixels = trial._pixels()
    answer = convolved(pixels)
    assert len(np.unique(answer)) > 50, "an answer that says something"
    assert trial._compare(pixels, answer) == ""
    assert trial._compare(pixels, answer + np.float32(0.1)) == "", "libraries may round"
    answer[2, 3, 4] += 1
    assert "came back wrong" in trial._compare(pixels, answer)
    assert "came back wrong" in trial._compare(pixels, answer[:2])


@pytest.mark.slow
def test_a_refusal_is_told_in_its_own_words():
    said = []
    assert "backend = 'tensorrt' runs on cuda" in trial.run("tensorrt", "cpu", Settings(), said.append)


@pytest.mark.slow
def test_a_device_that_works_gives_right_answers():
    said = []
    assert trial.run("onnxruntime", "cpu", Settings(), said.append) == ""


def test_an_examination_that_dies_is_none(monkeypatch, capfd):
    monkeypatch.setattr(child, "_MODULE", machine.__name__ + ".nowhere")
    with pytest.raises(InvalidSettings, match="ended before it was done"):
        child.examine("")
    assert "nowhere" in capfd.readouterr().err
