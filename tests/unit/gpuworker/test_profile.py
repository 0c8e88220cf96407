from gpuworker import profile
from shm.wire import ProfilePoint


class Clock:
    """A clock that a run moves on by the next of `times`."""

    def __init__(self, *times):
        self.now, self.runs, self._times = 0, 0, times

    def __call__(self):
        return self.now

    def run(self):
        self.now += self._times[min(self.runs, len(self._times) - 1)]
        self.runs += 1


def test_a_fast_model_is_run_often():
    clock = Clock(10, 30, 20)
    assert profile.measure(4, clock.run, clock) == ProfilePoint(4, 20, 30)
    assert clock.runs == profile.RUNS_MAX


def test_the_tail_is_seen():
    clock = Clock(*[10] * 10, 500, *[10] * 9)
    assert profile.measure(1, clock.run, clock) == ProfilePoint(1, 10, 500)


def test_a_slow_model_is_run_a_few_times():
    clock = Clock(200_000_000)
    assert profile.measure(8, clock.run, clock).p50_ns == 200_000_000
    assert clock.runs == profile.RUNS_MIN


def test_a_very_slow_model_is_run_once():
    clock = Clock(7_000_000_000)
    assert profile.measure(8, clock.run, clock) == ProfilePoint(8, 7_000_000_000, 7_000_000_000)
    assert clock.runs == 1


class Device:
    """Starting a batch takes `copy` ns before the device can begin with it, computing it `compute`."""

    def __init__(self, copy, compute):
        self.now = self.free = 0
        self.copy, self.compute = copy, compute
        self.ends = []
        self.most = 0

    def clock(self):
        return self.now

    def start(self):
        self.now += self.copy
        self.free = max(self.now, self.free) + self.compute
        self.ends.append(self.free)
        self.most = max(self.most, len(self.ends))

    def finish(self):
        self.now = max(self.now, self.ends.pop(0))


def test_of_batches_that_overlap_the_period_is_measured_and_what_one_alone_takes_more():
    device = Device(copy=30, compute=50)
    assert profile.measure_overlapping(4, device.start, device.finish, device.clock) == ProfilePoint(4, 50, 50, 30)
    assert device.most == 2
    assert device.ends == []


def test_where_copying_takes_longer_that_is_the_period():
    device = Device(copy=70, compute=50)
    assert profile.measure_overlapping(4, device.start, device.finish, device.clock) == ProfilePoint(4, 70, 70, 50)
