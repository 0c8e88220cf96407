"""The way of the bytes over a (pretend) card: lanes, streams, graphs, and what a broken device looks like."""

import ctypes
import sys
import threading

import numpy as np
import pytest

from gateway.errors import InvalidModel
from gpuworker.backend import DeviceLost
from gpuworker.gpu.backend import CardBackend, agree
from gpuworker.gpu.card import Card, CudaError, Memory, NotReplayable, Stream
from shm.layout import Field
from tests.support import graphs, pretend


@pytest.fixture
def card(monkeypatch):
    return pretend.in_process(monkeypatch)


def quiet(stage, share):
    pass


class Sums:
    """An engine whose answer is the sum of a row's pixels, times the batch's size."""

    provider = "sums"

    def __init__(self, pretend_card, row_size):
        self.pretend = pretend_card
        self.row_size = row_size
        self.bound = {}
        self.enqueued = []
        self.fails = None
        self.recorded = None
        """Done instead of the work while it is recorded."""

    def open(self, card, report):
        self.card = card
        return (Field("sum", "float32", (1,)),)

    def bind(self, size, source, targets):
        self.bound[size] = source, targets["sum"]

    def enqueue(self, size):
        if self.fails is not None:
            raise self.fails
        self.enqueued.append(size)
        source, target = self.bound[size]
        if self.recorded is not None and self.pretend.streams[self.card.compute.address].recording is not None:
            self.recorded(target)
            return

        def compute():
            pixels = np.frombuffer((ctypes.c_uint8 * (size * self.row_size)).from_address(source), np.uint8)
            sums = pixels.reshape(size, -1).sum(axis=1, dtype=np.float32) * size
            ctypes.memmove(target, sums.astype(np.float32).ctypes.data, size * 4)

        self.pretend.enqueue(self.card.compute.address, compute)

    def close(self):
        pass


def opened(card, text="", sizes=(1, 4), recorded=None):
    contract = graphs.contract(text, batching=f"sizes = {list(sizes)}")
    row_size = int(np.prod(contract.input.shape))
    runner = Sums(card, row_size)
    runner.recorded = recorded
    backend = CardBackend(contract, runner)
    backend.load(quiet)
    for size in sizes:
        backend.warmup(size)
    return backend, runner


def fill(backend, size, values):
    for row, value in zip(backend.staging(size), values, strict=False):
        row[:] = value


def test_a_batch_comes_back(card):
    backend, runner = opened(card)
    fill(backend, 4, [1, 2, 3])
    outputs = backend.run(4, 3)
    assert outputs.arrays["sum"][:, 0].tolist() == [value * runner.row_size * 4 for value in (1, 2, 3)]
    assert backend.compute_ns > 0


@pytest.mark.parametrize("copy_ms", ["0", "5"])
def test_a_second_batch_is_taken_while_the_first_is_copied_and_computed(card, monkeypatch, copy_ms):
    backend, runner = opened(card)
    monkeypatch.setenv("PENSTOCK_PRETEND_COPY_MS", copy_ms)
    for first in range(1, 20, 2):
        fill(backend, 1, [first])
        backend.start(1, 1)
        fill(backend, 4, [first + 1] * 4)
        backend.start(4, 4)
        one = backend.finish().arrays["sum"].copy()
        four = backend.finish().arrays["sum"].copy()
        assert one[0, 0] == first * runner.row_size
        assert set(four[:, 0]) == {(first + 1) * runner.row_size * 4}


def test_a_third_batch_is_our_bug(card):
    backend, _ = opened(card)
    backend.start(1, 1)
    backend.start(1, 1)
    with pytest.raises(AssertionError):
        backend.start(1, 1)
    backend.finish()
    backend.finish()
    with pytest.raises(AssertionError):
        backend.finish()


def test_sizes_are_recorded_once_and_replayed(card):
    backend, runner = opened(card)
    assert set(backend.graphs) == {1, 4}
    before = len(runner.enqueued)
    backend.run(4, 4)
    assert len(runner.enqueued) == before


def test_a_contract_can_do_without_graphs(card):
    backend, runner = opened(card, "[gpu]\ncuda_graph = false")
    assert not backend.graphs
    before = len(runner.enqueued)
    fill(backend, 1, [7])
    assert backend.run(1, 1).arrays["sum"][0, 0] == 7 * runner.row_size
    assert len(runner.enqueued) == before + 1


def test_what_cannot_be_recorded_is_run_without_and_said(card, capfd):
    card.capturing_fails = 901
    backend, runner = opened(card)
    assert not backend.graphs
    assert capfd.readouterr().err.count("cuda_graph_refused") == 2
    fill(backend, 1, [7])
    assert backend.run(1, 1).arrays["sum"][0, 0] == 7 * runner.row_size


def raises(error):
    def recorded(target):
        raise error

    return recorded


def writes(card, value):
    """Work that is recorded in place of the engine's, and gives another answer."""
    answer = np.float32([value] * 4)

    def recorded(target):
        step = lambda: ctypes.memmove(target, answer.ctypes.data, 4)  # noqa: E731 - a step is any callable
        card.enqueue(Card.open().compute.address, step)

    return recorded


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (lambda card: raises(MemoryError("an arena that cannot grow while recorded")), "cannot grow"),
        (lambda card: lambda target: None, "other values of 'sum'"),
        (lambda card: writes(card, 5), "other values of 'sum'"),
        (lambda card: writes(card, np.nan), "other values of 'sum'"),
    ],
    ids=["no memory", "nothing recorded", "another answer", "no number"],
)
def test_a_recording_that_is_no_good_is_not_used(card, capfd, recorded, words):
    backend, runner = opened(card, recorded=recorded(card))
    assert not backend.graphs
    assert not card.execs
    errors = capfd.readouterr().err
    assert errors.count("cuda_graph_refused") == 2
    assert words in errors
    # Nor later, when right answers of before lie everywhere.
    for _ in range(2):
        backend.run(4, 4)
        backend.warmup(4)
    assert not backend.graphs
    fill(backend, 4, [7] * 4)
    assert backend.run(4, 4).arrays["sum"][0, 0] == 7 * runner.row_size * 4


def test_answers_may_differ_by_the_order_of_additions():
    expected = np.array([[1000.0, 0.1, np.nan, np.inf]], np.float16)
    other = np.array([[1001.0, 0.4, np.nan, np.inf]], np.float16)
    assert agree(other, expected)
    assert not agree(np.array([[1000.0, 50.0, np.nan, np.inf]], np.float16), expected)
    assert not agree(np.array([[1000.0, 0.1, 0.0, np.inf]], np.float16), expected)
    assert agree(np.array([3, 4]), np.array([3, 4]))
    assert not agree(np.array([3, -1]), np.array([3, 4]))


def test_a_lane_is_not_free_while_its_batch_is_waited_for(card, monkeypatch):
    backend, _ = opened(card)
    waits, gate = threading.Event(), threading.Event()
    real = card.cudaEventSynchronize

    def synchronize(event):
        waits.set()
        return real(event)

    monkeypatch.setattr(card.cudart, "cudaEventSynchronize", synchronize)
    card.enqueue(Card.open().compute.address, gate.wait)
    backend.start(1, 1)
    backend.start(1, 1)
    finishing = threading.Thread(target=backend.finish)
    finishing.start()
    waits.wait()
    with pytest.raises(AssertionError, match="a lane is used again"):
        backend.start(1, 1)
    gate.set()
    finishing.join()
    backend.start(1, 1)


def test_weights_that_an_engine_uploads_by_itself_are_there_before_it_runs(card, monkeypatch):
    gate, arrived = threading.Event(), []
    real = card.cudaDeviceSynchronize

    def synchronize():
        gate.set()
        return real()

    monkeypatch.setattr(card.cudart, "cudaDeviceSynchronize", synchronize)

    class Uploads(Sums):
        def open(self, opened_card, report):
            own = Stream()
            self.pretend.enqueue(own.address, gate.wait)
            self.pretend.enqueue(own.address, lambda: arrived.append("weights"))
            return super().open(opened_card, report)

    backend = CardBackend(graphs.contract(), Uploads(card, 1))
    backend.load(quiet)
    assert arrived == ["weights"]


@pytest.mark.parametrize("kind", ["call", "pageable", "pinned", "device"])
def test_what_would_use_the_hosts_memory_again_is_not_replayed(card, kind):
    pretend_cuda = sys.modules["pretend_cuda"]
    _, runner = opened(card, "[gpu]\ncuda_graph = false")
    pageable = np.zeros(1, np.uint8)
    device, pinned = Memory.on_device(1), Memory.pinned(1)
    source = {"pageable": pageable.ctypes.data, "pinned": pinned.address, "device": device.address}.get(kind)
    step = pretend_cuda.HostCall() if kind == "call" else pretend_cuda.Copy(source, lambda: None)

    def work():
        runner.enqueue(1)
        card.enqueue(runner.card.compute.address, step)

    if kind in {"call", "pageable"}:
        with pytest.raises(NotReplayable, match="the host"):
            runner.card.compute.capture(work)
        assert not card.graphs
    else:
        runner.card.compute.capture(work).launch(runner.card.compute)
        runner.card.compute.wait()


def test_an_engine_that_cannot_begin_leaves_the_lane_clean(card):
    backend, runner = opened(card, "[gpu]\ncuda_graph = false")
    runner.fails = MemoryError("arena")
    fill(backend, 1, [3])
    with pytest.raises(MemoryError):
        backend.start(1, 1)
    runner.fails = None
    fill(backend, 1, [5])
    assert backend.run(1, 1).arrays["sum"][0, 0] == 5 * runner.row_size


def test_a_sticky_error_loses_the_device_for_all_that_comes(card):
    backend, _ = opened(card)
    backend.start(1, 1)
    card.sticky = 700
    with pytest.raises(DeviceLost, match=r"CUDA error 700 \(cudaErrorIllegalAddress\)"):
        backend.finish()
    with pytest.raises(DeviceLost):
        backend.start(1, 1)
    backend.close()


@pytest.mark.parametrize("call", ["start", "finish"])
def test_an_error_that_no_table_has_loses_the_device_too(card, call):
    backend, _ = opened(card)
    if call == "finish":
        backend.start(1, 1)
    card.sticky = 999
    with pytest.raises(DeviceLost, match=r"CUDA error 999 \(cudaErrorUnknown\)"):
        backend.start(1, 1) if call == "start" else backend.finish()


def test_what_a_model_took_before_there_was_no_more_is_given_back(card, monkeypatch):
    contract = graphs.contract(batching="sizes = [8]")
    row_size = int(np.prod(contract.input.shape))
    room = (300 << 20) + 2 * 8 * row_size + 8 * 4
    monkeypatch.setenv("PENSTOCK_PRETEND_MEMORY", str(room))
    backend = CardBackend(contract, Sums(card, row_size))
    with pytest.raises(MemoryError, match="out of memory"):
        backend.load(quiet)
    assert card.device
    assert card.pinned
    backend.close()
    assert not card.device
    assert not card.pinned


def test_what_cannot_be_given_back_keeps_nothing_else_from_it(card, monkeypatch):
    backend, _ = opened(card)
    monkeypatch.setattr(card.cudart, "cudaGraphExecDestroy", lambda handle: (card.error(1),))
    backend.close()
    assert not card.device
    assert not card.pinned


def test_a_card_without_room_says_so(card, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PRETEND_MEMORY", str((300 << 20) + 5000))
    backend = CardBackend(graphs.contract(batching="sizes = [1024]"), Sums(card, 1))
    with pytest.raises(MemoryError, match="out of memory"):
        backend.load(quiet)


def test_no_card_is_a_refusal_that_names_the_cause(card, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    backend = CardBackend(graphs.contract(), Sums(card, 1))
    with pytest.raises(InvalidModel, match=r"no GPU .*CUDA error 100 \(cudaErrorNoDevice\).*penstock doctor"):
        backend.load(quiet)


def test_closing_gives_all_of_it_back(card):
    backend, _ = opened(card)
    assert card.device
    assert card.pinned
    backend.close()
    assert not card.device
    assert not card.pinned
    assert not card.execs


def test_memory_is_given_back_once(card):
    memory = Memory.on_device(10)
    again = Memory(memory.address, 10, card.cudart.cudaFree)
    memory.close()
    memory.close()
    with pytest.raises(CudaError, match="CUDA error 1 "):
        again.close()


def test_the_card_knows_what_it_is(card):
    properties = Card.open().properties
    assert properties.label == "Pretend GPU, 8 GiB"
    assert properties.capability == (9, 0)
    assert Card.open() is Card.open()
    assert 0 < Card.free_size() < 8 << 30
