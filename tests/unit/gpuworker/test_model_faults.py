"""Batches that are interrupted, do not fit, or lose the device: what is said of them, and that the next one runs."""

import types

import pytest

from gpuworker import backend as backends
from gpuworker import onnxruntime_backend, sessions
from gpuworker.backend import DeviceLost
from gpuworker.model import INTERRUPTED, LOST, NO_MEMORY, NOT_RUN
from shm.wire import ItemStatus
from tests.support import graphs
from tests.support.models import CPU, FAILED, OK, WHITE, batch, fake, interrupted, opened, quiet


def test_a_graph_without_end_is_interrupted_and_the_next_batch_runs(tmp_path, capfd):
    model, pixels, slots = opened(graphs.contract(), graphs.save(graphs.endless(), tmp_path))
    pixels[0], pixels[1] = WHITE, 7
    for _ in range(3):
        ran = interrupted(model, batch([0], size=1))
        assert ran.statuses == [ItemStatus.INTERRUPTED]
        assert ran.detail == INTERRUPTED
        assert model.execute(batch([1], size=1)).statuses == [OK]
        assert slots["probability"][1, 0] == 7
    assert "terminate flag" in capfd.readouterr().err, "its own words are in the log"


@pytest.mark.parametrize("kind", ["onnxruntime", "fake"])
def test_an_interrupt_between_batches_ends_nothing(tmp_path, kind):
    contract = fake(base_ms=1) if kind == "fake" else graphs.contract()
    model, _, _ = opened(contract, graphs.save(graphs.means(), tmp_path))
    model.interrupt()
    assert model.execute(batch([0, 1])).statuses == [OK] * 2


def test_a_batch_that_does_not_fit_is_said_and_the_session_lives(tmp_path, capfd):
    model, pixels, slots = opened(graphs.contract(), graphs.save(graphs.hungry(), tmp_path))
    pixels[:2], pixels[2] = WHITE, 7
    ran = model.execute(batch([0, 1], size=2))
    assert ran.statuses == [ItemStatus.NO_MEMORY] * 2
    assert ran.detail == NO_MEMORY
    assert "Failed to allocate memory" in capfd.readouterr().err
    assert model.execute(batch([2], size=1)).statuses == [OK]
    assert slots["probability"][2, 0] == 7


def test_the_smallest_size_that_does_not_fit_three_times_in_a_row_is_the_end(tmp_path):
    model, pixels, _ = opened(graphs.contract(), graphs.save(graphs.hungry(), tmp_path))
    pixels[:2] = WHITE
    small, large, good = batch([0], size=1), batch([0, 1], size=2), batch([5], size=1)
    said = [model.execute(run).statuses[0].name for run in (small, small, good, small, large, large, small, small)]
    assert said == ["NO_MEMORY", "NO_MEMORY", "OK", *["NO_MEMORY"] * 4, "DEVICE_LOST"]


@pytest.mark.parametrize(
    ("words", "status", "detail"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", ItemStatus.DEVICE_LOST, LOST),
        ("CUDA failure 2: out of memory ; GPU=0", ItemStatus.NO_MEMORY, NO_MEMORY),
        ("CUDA failure 1: invalid argument", FAILED, NOT_RUN),
    ],
)
def test_what_an_engine_says_of_its_device(tmp_path, words, status, detail):
    model, _, _ = opened(graphs.contract(), graphs.save(graphs.means(), tmp_path))

    def fail():
        raise RuntimeError(words)

    bound = model._backend._bound
    bound[1] = bound[1]._replace(run=fail)
    ran = model.execute(batch([0], size=1))
    assert (ran.statuses, ran.detail) == ([status], detail)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("CUDA failure 719: unspecified launch failure", DeviceLost), ("std::bad_alloc", MemoryError)],
)
@pytest.mark.parametrize("where", ["open", "first_run", "warmup"])
def test_a_lost_device_is_not_the_models_fault(tmp_path, monkeypatch, where, words, kind):
    graphs.save(graphs.means(), tmp_path)

    def fail(*_, **__):
        raise RuntimeError(words)

    opener = backends.open_backend(graphs.contract(), tmp_path, CPU)
    if where == "open":
        monkeypatch.setattr(onnxruntime_backend.onnxruntime, "InferenceSession", fail)
    elif where == "first_run":
        monkeypatch.setattr(onnxruntime_backend.onnxruntime.InferenceSession, "run", fail)
    else:
        opener.load(quiet)
        monkeypatch.setattr(sessions, "functools", types.SimpleNamespace(partial=lambda *_: fail))
    with pytest.raises(kind, match=words):
        opener.warmup(1) if where == "warmup" else opener.load(quiet)
