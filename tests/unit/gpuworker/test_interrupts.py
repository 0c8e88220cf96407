"""An interrupt ends what runs now, and only that."""

import threading

from gpuworker.interrupts import Interrupts


class Model:
    def __init__(self, on_interrupt=lambda: None):
        self.count = 0
        self._on_interrupt = on_interrupt

    def interrupt(self):
        self.count += 1
        self._on_interrupt()


def test_it_reaches_the_model_that_runs_and_no_other():
    interrupts, first, second = Interrupts(), Model(), Model()
    interrupts.interrupt()
    interrupts.begin(first)
    interrupts.interrupt()
    interrupts.end()
    interrupts.interrupt()
    interrupts.begin(second)
    interrupts.end()
    assert (first.count, second.count) == (1, 0)


def test_a_batch_does_not_end_while_it_is_being_interrupted():
    """Else the flag that is set for it would hit the one behind it."""
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert leave.wait(30)

    interrupts = Interrupts()
    interrupts.begin(Model(slow))
    interrupter = threading.Thread(target=interrupts.interrupt)
    ender = threading.Thread(target=lambda: (interrupts.end(), ended.set()))
    interrupter.start()
    assert entered.wait(30)
    ender.start()
    assert not ended.wait(0.05)
    leave.set()
    assert ended.wait(30)
    interrupter.join(30)
    ender.join(30)
