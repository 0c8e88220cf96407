"""An interrupt ends what runs now, and only that."""

import threading

from gpuworker.interrupts import YOUNG_NS, Interrupts


class Model:
    def __init__(self, on_interrupt=lambda: None):
        self.count = 0
        self._on_interrupt = on_interrupt

    def interrupt(self):
        self.count += 1
        self._on_interrupt()


def test_it_reaches_the_model_that_runs_and_no_other():
    interrupts, first, second = Interrupts(), Model(), Model()
    interrupts.interrupt(9 * YOUNG_NS)
    interrupts.begin(first, 0)
    interrupts.interrupt(9 * YOUNG_NS)
    interrupts.end()
    interrupts.interrupt(9 * YOUNG_NS)
    interrupts.begin(second, 0)
    interrupts.end()
    assert (first.count, second.count) == (1, 0)


def test_a_batch_that_has_just_begun_is_not_meant():
    """The signal was for the one before, whose answer crossed it on the way."""
    interrupts, model = Interrupts(), Model()
    interrupts.begin(model, 1_000)
    interrupts.interrupt(1_000 + YOUNG_NS - 1)
    assert model.count == 0
    interrupts.interrupt(1_000 + YOUNG_NS)
    assert model.count == 1


def test_a_batch_does_not_end_while_it_is_being_interrupted():
    """Else the flag that is set for it would hit the one behind it."""
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert leave.wait(30)

    interrupts = Interrupts()
    interrupts.begin(Model(slow), 0)
    interrupter = threading.Thread(target=lambda: interrupts.interrupt(YOUNG_NS))
    ender = threading.Thread(target=lambda: (interrupts.end(), ended.set()))
    interrupter.start()
    assert entered.wait(30)
    ender.start()
    assert not ended.wait(0.05)
    leave.set()
    assert ended.wait(30)
    interrupter.join(30)
    ender.join(30)
