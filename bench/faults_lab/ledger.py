"""Every request with its input, its deadline and what came of it: once, rightly, in time, or not.

A row is written when its request is sent and completed when it ends. Nothing is ever removed, so what has no outcome at
the end shows. Times are those of `time.monotonic()`, in seconds.
"""

from __future__ import annotations

import bisect
import collections
import enum
import itertools
import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

LATE_TOLERANCE_S = 0.1
"""How long after its deadline a result may reach the client: the way there and back, and a generator that has to wait
for its core. The gateway itself is allowed nothing."""


class Outcome(enum.StrEnum):
    """How a request ended, as the client saw it."""

    PENDING = "pending"
    ANSWERED = "answered"
    RESET = "reset"
    """The connection ended without an answer."""
    REFUSED = "connection refused"
    NOTHING = "nothing"
    """No answer long after the deadline."""
    LEFT = "left"
    """The client went away without waiting."""
    UNREADABLE = "unreadable"
    """Bytes came that are no HTTP answer."""


class Verdict(enum.StrEnum):
    """What it is counted as."""

    OK = "ok"
    REFUSED = "refused"
    """An error with a code, as documented."""
    LOST = "lost"
    TWICE = "twice"
    WRONG = "wrong"
    """Another image's answer, or an answer that is none of ours."""
    LATE = "late"
    EXCUSED = "excused"
    """Nobody waited for it, or nobody was left to answer it."""


class Row(msgspec.Struct):
    """One request. `crc` is its input's, `answer` the class that is right for it, of the version that answered.

    `got` is the class that was answered, -1 without one; `version` the one that says that it answered, 0 without.
    """

    id: str
    kind: str
    input: str
    crc: int
    sent_s: float
    deadline_s: float
    outcome: Outcome = Outcome.PENDING
    status: int = 0
    code: str = ""
    detail: str = ""
    request_id: str = ""
    answer: int = -1
    got: int = -1
    version: int = 0
    answered_s: float = 0.0
    total_ms: float = 0.0
    """What the gateway says that it took, from the headers to the answer."""
    retry_s: int = -1
    """Retry-After; -1 without one."""
    more: int = 0
    """Answers after the first."""
    excuse: str = ""
    """Why it could not be answered, or not well; written by the trial that made it so."""

    @property
    def verdict(self) -> Verdict:
        """The worst that can be said of it."""
        if self.more:
            return Verdict.TWICE
        if self.outcome is not Outcome.ANSWERED:
            return self._unanswered()
        if self.request_id != self.id:
            return Verdict.WRONG
        if self.status != 200:
            return Verdict.REFUSED if self._is_whole_refusal else Verdict.WRONG
        if self.got != self.answer:
            return Verdict.WRONG
        return Verdict.LATE if self.answered_s > self.deadline_s + LATE_TOLERANCE_S else Verdict.OK

    @property
    def _is_whole_refusal(self) -> bool:
        """Whether it says why, and where it is to be tried again, when. One for a defect of the server's is none, but
        where a defect was injected.
        """
        if self.status in (429, 503) and self.retry_s < 0:
            return False
        return bool(self.code) and (self.code != "internal" or bool(self.excuse))

    def _unanswered(self) -> Verdict:
        if self.excuse or self.outcome is Outcome.LEFT:
            return Verdict.EXCUSED
        return Verdict.WRONG if self.outcome is Outcome.UNREADABLE else Verdict.LOST


class Ledger:
    """All rows of one trial, in the order in which they were sent."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def open(self, row: Row) -> Row:
        """A request is about to be sent."""
        self.rows.append(row)
        return row

    def verdicts(self, kinds: Iterable[str] = ()) -> collections.Counter[Verdict]:
        """How many of each verdict, of these kinds or of all."""
        chosen = set(kinds)
        return collections.Counter(row.verdict for row in self.rows if not chosen or row.kind in chosen)

    def failures(self, kinds: Iterable[str] = ()) -> int:
        """How many had no right answer in time."""
        found = self.verdicts(kinds)
        return found.total() - found[Verdict.OK] - found[Verdict.EXCUSED]

    def codes(self, chosen: Callable[[Row], bool] = lambda _: True) -> collections.Counter[str]:
        """How many answers of each code; "ok" for a result. What was not answered has none."""
        found = (row for row in self.rows if row.outcome is Outcome.ANSWERED and chosen(row))
        return collections.Counter(row.code or "ok" for row in found)

    def between(self, begin_s: float, end_s: float) -> Iterator[Row]:
        """The requests that were sent in [begin_s, end_s)."""
        return (row for row in self.rows if begin_s <= row.sent_s < end_s)

    def recoveries_s(self, faults_s: Sequence[float]) -> list[float]:
        """From each fault to the first right answer of a request that was sent after it; infinite when none came."""
        good = sorted((row.sent_s, row.answered_s) for row in self.rows if row.verdict is Verdict.OK)
        firsts = list(itertools.accumulate((answered for _, answered in reversed(good)), min, initial=math.inf))[::-1]
        sent = [sent_s for sent_s, _ in good]
        return [firsts[bisect.bisect_left(sent, fault_s)] - fault_s for fault_s in faults_s]

    def write(self, path: Path, trial: str) -> None:
        """Append the rows as JSON lines, each with its trial and verdict."""
        encode = msgspec.json.Encoder().encode
        with path.open("ab") as file:
            for row in self.rows:
                line = {"trial": trial, "verdict": row.verdict, **msgspec.to_builtins(row)}
                file.write(encode(line) + b"\n")
