"""A model opened in this process: a real backend, slots in plain memory."""

import threading

import numpy as np
import pytest

from gateway.errors import InvalidModel
from gpuworker import backend as backends
from gpuworker.answers import make_answer
from gpuworker.backend import Setup
from gpuworker.device import Device
from gpuworker.model import Model
from shm import layout, views
from shm.wire import ItemStatus, Run
from tests.support import graphs

CPU = Setup(Device("cpu"), 1)
NEVER_LATE = 1 << 62
SLOTS = 6
RNG = np.random.default_rng(11)
OK, FAILED = ItemStatus.OK, ItemStatus.FAILED
WHITE = 255


def quiet(stage, share):
    """A report that nobody reads."""


def opened(contract, directory, *, warm=True, labels=0):
    """Make (model, input slots, output slots by field)."""
    opener = backends.open_backend(contract, directory, CPU)
    opener.load(quiet)
    if contract.output.task == "classification":
        size = contract.output.top_k_max * 8 + 2 * layout.SLOT_ALIGN
    else:
        size = contract.output.size_max
    buffer = bytearray(layout.stride(size) * SLOTS)
    answer = make_answer(contract, opener, labels, buffer, SLOTS)
    if warm:
        for batch in contract.batching.sizes:
            opener.warmup(batch)
    pixels = np.zeros((SLOTS, *contract.input.shape), np.uint8)
    model = Model("m", contract.batching.sizes, opener, answer, list(pixels.reshape(SLOTS, -1)))
    slots = views.slot_arrays(buffer, answer.fields, slot_size=layout.stride(size), slot_count=SLOTS)
    return model, pixels, slots


def batch(slots, *, size=4, top_k=1):
    return Run(1, 0, size, slots, top_k, NEVER_LATE)


def refusal(contract, directory, *, labels=0):
    with pytest.raises(InvalidModel) as caught:
        opened(contract, directory, labels=labels)
    return str(caught.value)


def fake(task="classification", output="", **settings):
    lines = "\n".join(f"{name} = {str(value).lower()}" for name, value in settings.items())
    return graphs.contract('backend = "fake"', task=task, output=output, fake=lines)


def interrupted(model, run):
    """Run a batch that never ends by itself, and interrupt it once it runs."""
    began = threading.Event()
    begin = model._backend.run

    def starts(size, count):
        began.set()
        return begin(size, count)

    model._backend.run = starts
    interrupter = threading.Thread(target=lambda: began.wait(30) and until_done(model, done))
    done = threading.Event()
    interrupter.start()
    ran = model.execute(run)
    done.set()
    interrupter.join(30)
    model._backend.run = begin
    return ran


def until_done(model, done):
    """Interrupt again and again: the first may come before the run looks at it."""
    while not done.wait(0.001):
        model.interrupt()
