"""A process whose card is broken by an illegal access of its own: prints what each later call raises.

On a real card a kernel of a few lines writes where nothing is; the pretend one is told to act as if it had.
"""

import sys

import numpy as np

from gpuworker.gpu.card import Card, Memory

KERNEL = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry poison()
{
    .reg .u64 %place;
    .reg .u32 %value;
    mov.u64 %place, 8;
    mov.u32 %value, 1;
    st.global.u32 [%place], %value;
    ret;
}
\0"""


def poison(card):
    """Begin the illegal access on the compute stream."""
    if "pretend_cuda" in sys.modules:
        pretend_cuda = sys.modules["pretend_cuda"]

        def fault():
            raise pretend_cuda.Fault(700)

        pretend_cuda.card.enqueue(card.compute.address, fault)
        return
    from cuda.bindings import driver  # noqa: PLC0415 - needs a driver

    module = _checked(driver.cuModuleLoadData(np.frombuffer(KERNEL, np.uint8).ctypes.data))
    kernel = _checked(driver.cuModuleGetFunction(module, b"poison"))
    _checked(driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, card.compute.address, 0, 0))


def _checked(result):
    status, *values = result
    assert int(status) == 0, status
    return values[0] if values else None


def told(what, call):
    """Say how a call went."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - its name is what is looked at
        sys.stdout.write(f"{what} {type(error).__name__}\n")
    else:
        sys.stdout.write(f"{what} well\n")


card = Card.open()
told("before", lambda: Memory.on_device(1 << 20))
poison(card)
told("wait", card.compute.wait)
told("memory", lambda: Memory.on_device(1 << 20))
told("copy", card.copy.wait)
