"""How the worker's process ends. In processes of their own, for an end cannot be taken back."""

import signal
import subprocess
import sys

import pytest

AT_EXIT = """
import atexit, os, resource, sys
from gpuworker.__main__ import Exit, leave
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
atexit.register(os.abort)
sys.stderr.write("last words")
{card}
leave(Exit.DEVICE_LOST)
"""

LOST = """
import os
from types import SimpleNamespace
from gpuworker import __main__, start
from gpuworker.backend import DeviceLost
import gpuworker.gpu.card

class Engine:
    def __del__(self):
        os.abort()

def work(heritage):
    models = {1: Engine()}
    raise DeviceLost("an illegal memory access was encountered")

start.work = work
settled = lambda: None
heritage = SimpleNamespace(die_with_parent=settled, yield_to_parent=settled, thread_count=1, device="cuda:0")
__main__.Heritage.inherit = lambda fd: heritage
__main__.leave(__main__.main(["0"]))
"""
"""An engine whose device is lost throws from its destructor, which no C++ program survives."""


def run(code):
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("card", "code"),
    [("import gpuworker.gpu.card", 75), ("", -signal.SIGABRT)],
    ids=["with a card", "without one"],
)
def test_what_libraries_do_at_an_exit_cannot_change_the_code_of_a_worker_with_a_card(card, code):
    ended = run(AT_EXIT.format(card=card))
    assert ended.returncode == code
    assert ended.stderr.startswith("last words")


def test_nor_can_an_engine_whose_device_is_lost():
    ended = run(LOST)
    assert ended.returncode == 75
    assert ended.stderr.count("device_lost") == 1
