"""Named places where a process can be made to crash, hang or fail, for tests. Knows no place and no process by itself.

Armed by the environment, once, when this module is imported, or by `arm`. Its state is what is armed, and how often
each place was passed in this process. Not armed, a place costs one call and one truth test.

`PENSTOCK_FAILPOINTS="name=action[:argument][@nth][~share], ..."`::

    worker.before_run=crash            at every pass: die of SIGSEGV
    worker.before_run=kill@3           at the third pass of each process alone: die of SIGKILL
    worker.before_reply=kill~0.05      at one pass of twenty, drawn by PENSTOCK_FAILPOINTS_SEED and the pid
    decoder.before_decode=delay:250    every time 250 ms late

A child that restarts counts anew, and has another pid, so it draws anew too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import select
import signal
from typing import NamedTuple

VARIABLE = "PENSTOCK_FAILPOINTS"
SEED_VARIABLE = "PENSTOCK_FAILPOINTS_SEED"

_POINT = re.compile(
    r"(?P<name>[a-z_]+(?:\.[a-z_]+)+)=(?P<action>[a-z]+)(?::(?P<argument>\w+))?"
    r"(?:@(?P<nth>[1-9]\d*)|~(?P<share>0?\.\d+|0|1))?"
)

# Through raise(), which the decoders' sandbox allows: a kill() of oneself it does not.
_SIGNALS = {"crash": signal.SIGSEGV, "kill": signal.SIGKILL, "hang": signal.SIGSTOP}
_ACTIONS = (*_SIGNALS, "spin", "delay", "error", "exit")


class Injected(RuntimeError):
    """The failure that a failpoint was asked for."""


class Failpoint(NamedTuple):
    """One armed action. `nth`: only at that pass, 0 for all. `share`: of the passes."""

    name: str
    action: str
    argument: str
    nth: int
    share: float


class _Armed:
    """One failpoint, and how often it was passed."""

    __slots__ = ("_draw", "_passes", "point")

    def __init__(self, point: Failpoint, seed: str) -> None:
        self.point = point
        self._passes = 0
        self._draw = random.Random(f"{seed} {os.getpid()} {point.name}")  # noqa: S311 -- repeatable, not secret

    def hit(self) -> None:
        point = self.point
        self._passes += 1
        if point.nth not in (0, self._passes) or (point.share < 1 and self._draw.random() >= point.share):
            return
        _act(point)


_armed: dict[str, list[_Armed]] = {}


def hit(name: str) -> None:
    """Pass the place `name`: nothing happens, unless it is armed."""
    if _armed:
        for armed in _armed.get(name, ()):
            armed.hit()


def active() -> list[str]:
    """Every armed failpoint, as it was written: for a warning at start."""
    return [_written(armed.point) for points in _armed.values() for armed in points]


def arm(text: str, seed: str = "0") -> None:
    """Arm exactly the failpoints of `text`; none for "". Raises ValueError, which names the one that is none."""
    points = parse(text)
    _armed.clear()
    for point in points:
        _armed.setdefault(point.name, []).append(_Armed(point, seed))


def parse(text: str) -> list[Failpoint]:
    """Read a list of failpoints. Raises ValueError."""
    return [_parse_one(part) for part in map(str.strip, text.split(",")) if part]


def _parse_one(part: str) -> Failpoint:
    found = _POINT.fullmatch(part)
    if found is None:
        raise ValueError(f"{part!r} is no failpoint; write name=action, name=action:argument@nth or name=action~share")
    action, argument = found["action"], found["argument"] or ""
    if action not in _ACTIONS:
        raise ValueError(f"{part!r}: no action '{action}'; there are {', '.join(_ACTIONS)}")
    if action in ("delay", "exit"):
        fits = argument.isdecimal()
    elif action == "error":
        fits = not argument or hasattr(errno, argument)
    else:
        fits = not argument
    if not fits:
        raise ValueError(f"{part!r}: write delay:MS, exit:CODE, error or error:ERRNO, the others without an argument")
    return Failpoint(found["name"], action, argument, int(found["nth"] or 0), float(found["share"] or 1))


def _written(point: Failpoint) -> str:
    argument = f":{point.argument}" if point.argument else ""
    when = f"@{point.nth}" if point.nth else f"~{point.share:g}" if point.share < 1 else ""
    return f"{point.name}={point.action}{argument}{when}"


def _act(point: Failpoint) -> None:
    """Do it. Some never return."""
    if point.action == "error":
        if point.argument:
            number = getattr(errno, point.argument)
            raise OSError(number, os.strerror(number), point.name)
        raise Injected(point.name)
    if point.action == "delay":
        # Not sleep(), whose system call the decoders' sandbox refuses.
        select.poll().poll(int(point.argument))
    elif point.action == "exit":
        os._exit(int(point.argument))
    elif point.action == "spin":
        spin()
    else:
        strike(_SIGNALS[point.action])


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def strike(number: signal.Signals) -> None:
    """Send this process a signal and let it do what it does by default, whatever was set for it."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        # Only the main thread may, and only it is ever asked to do something else.
        with contextlib.suppress(ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def arm_from_environment() -> None:
    """Arm what the environment says. A list that does not parse ends the process: half a fault proves nothing."""
    try:
        arm(os.environ.get(VARIABLE, ""), os.environ.get(SEED_VARIABLE, "0"))
    except ValueError as error:
        raise SystemExit(f"penstock: {VARIABLE}: {error}") from None


arm_from_environment()
