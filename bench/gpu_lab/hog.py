"""`python -m bench.gpu_lab.hog BYTES`: takes the card's memory but for BYTES, and holds it until it is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
_STEPS = (1 << 30, 64 << 20, 2 << 20)
"""Bytes of one allocation, the largest that fits first."""


@contextlib.contextmanager
def holding(leave: int) -> Iterator[int]:
    """While the block runs, leave that many bytes of the card free. Gives those that are left. Raises RuntimeError."""
    command = [sys.executable, "-m", "bench.gpu_lab.hog", str(leave)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        word = child.stdout.readline()
        if not word:
            raise RuntimeError(f"what takes the card's memory ended with {child.wait(10)}")
        yield int(word)
    finally:
        child.kill()
        child.communicate()


def main(leave: int) -> None:
    """Take what there is, say what is left, and wait to be killed."""
    from gpuworker.gpu.card import Card, Memory  # noqa: PLC0415 - whoever starts this opens no card

    Card.open()
    held = []
    for step in _STEPS:
        while Card.free_size() >= leave + step:
            try:
                held.append(Memory.on_device(step))
            except MemoryError:
                break
    print(Card.free_size(), flush=True)
    # Until whoever started it is gone too.
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
