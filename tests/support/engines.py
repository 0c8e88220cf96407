"""TensorRT's backend opened in this process, and what it says of noise beside what the CPU says."""

import contextlib

import numpy as np
import pytest

from gateway.errors import InvalidModel
from gpuworker.backend import Setup, open_backend
from gpuworker.device import Device
from shm.heritage import DeviceGrant
from tests.support import graphs

SIZES = (1, 2, 4)
NORMALISED = "mean = [10.0, 20.0, 30.0]\nstd = [2.0, 4.0, 8.0]"


def contract(text="", **sections):
    sections.setdefault("batching", f"sizes = {list(SIZES)}")
    return graphs.contract('backend = "tensorrt"\n' + text, **sections)


def quiet(stage, share):
    pass


@contextlib.contextmanager
def opened(spec, directory, engines="", *, report=quiet, warm=True, **grant):
    setup = Setup(Device("cuda", "0"), 1, DeviceGrant(engine_dir=str(engines) if engines else "", **grant))
    backend = open_backend(spec, directory, setup)
    try:
        backend.load(report)
        for size in spec.batching.sizes if warm else ():
            backend.warmup(size)
        yield backend
    finally:
        backend.close()


def refusal(spec, directory, engines="", **grant):
    with pytest.raises(InvalidModel) as caught, opened(spec, directory, engines, **grant):
        pass
    return str(caught.value)


def answers(backend, sizes=SIZES):
    """What it says of noise, at every size, full and with one image less."""
    row_size = len(backend.staging(sizes[-1])[0])
    noise, found = np.random.default_rng(7).integers(0, 256, (sizes[-1], row_size), np.uint8), []
    for size in sizes:
        for count in {size, max(1, size - 1)}:
            for row, pixels in zip(backend.staging(size), noise[:count], strict=False):
                row[:] = pixels
            found.append({name: array.copy() for name, array in backend.run(size, count).arrays.items()})
    return found


def on_the_cpu(spec, directory):
    backend = open_backend(spec, directory, Setup(Device("cpu"), 1))
    backend.load(quiet)
    for size in spec.batching.sizes:
        backend.warmup(size)
    found = answers(backend, spec.batching.sizes)
    backend.close()
    return found


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].dtype == other[name].dtype
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-6)
