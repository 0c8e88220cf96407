"""Which pretend GPUs there are: what pretend CUDA opens and pretend NVML lists.

PENSTOCK_PRETEND_GPUS    how many ("2"), or "mig": one that is cut in two slices; one without it
PENSTOCK_PRETEND_MEMORY  bytes of each; slices have half
PENSTOCK_PRETEND_DIR     a folder in which each process says what it holds on which GPU
"""

import contextlib
import os
from pathlib import Path

GPUS = "PENSTOCK_PRETEND_GPUS"
MEMORY = "PENSTOCK_PRETEND_MEMORY"
FOLDER = "PENSTOCK_PRETEND_DIR"
MEMORY_SIZE = 8 << 30
NAME = "Pretend GPU"
SLICES = tuple(f"MIG-{number:08d}-5555-6666-7777-888888888888" for number in range(2))


def uuid(place):
    """Of the GPU at this place on the bus."""
    return f"GPU-{place:08d}-1111-2222-3333-444444444444"


def count():
    wanted = os.environ.get(GPUS, "1")
    return 1 if wanted == "mig" else int(wanted)


def slices():
    """UUIDs of the slices, if the GPU is in MIG mode."""
    return SLICES if os.environ.get(GPUS) == "mig" else ()


def memory_size(of):
    """Bytes of a GPU or a slice, by its UUID."""
    whole = int(os.environ.get(MEMORY, MEMORY_SIZE))
    return whole // len(SLICES) if of in SLICES else whole


def opened(mask):
    """The GPU that a process sees which has this in CUDA_VISIBLE_DEVICES; None: it sees none, or CUDA would choose."""
    places = {str(place): uuid(place) for place in range(count())}
    if mask is None:
        return places.get("0")
    return places.get(mask, mask if mask in {*places.values(), *slices()} else None)


def publish(size, of):
    """This process holds so many bytes on a GPU."""
    if folder := os.environ.get(FOLDER):
        file = Path(folder) / str(os.getpid())
        part = file.with_suffix(".part")
        part.write_text(f"{size} {of}")
        part.rename(file)


def holdings(of=None):
    """Bytes by pid, of processes that live; on one GPU, if it is named."""
    found = {}
    if folder := os.environ.get(FOLDER):
        for file in Path(folder).iterdir():
            with contextlib.suppress(OSError, ValueError):
                size, where = file.read_text().split()
                if of in {None, where} and _lives(file.name):
                    found[int(file.name)] = int(size)
    return found


def _lives(pid):
    """Whether a process has its memory still: one that was not reaped yet has none, on a card either."""
    state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return state not in "ZX"
