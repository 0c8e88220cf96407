"""What came of each request of a run: when it was due, sent and answered, and with which status. Arrays; no I/O."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

OK = 200

UNSENT, TIMED_OUT, BROKEN, WRONG = -1, -2, -3, -4
"""In place of a status: every connection was busy at the bound; no answer in time; the connection failed; the answer
was not the expected one.
"""

NAMES = {UNSENT: "unsent", TIMED_OUT: "timed out", BROKEN: "broken", WRONG: "wrong answer"}


class Sample(NamedTuple):
    """What the body of the answer at a place in the part says.

    `code`: of a problem, else ""; `timing_ms`: by stage, or empty.
    """

    place: int
    status: int
    code: str
    timing_ms: dict[str, float]


class Shots:
    """One run, or a part of it. Times are float64[count] seconds from the run's begin, nan where there is none.

    `status` is int16[count]: HTTP's, or one of NAMES. `bodies`: answers' bodies of the requests that were
    sampled, by index into the whole run; `first` is the index of this part's first request there. `began_s` is the
    run's begin by `time.monotonic()`.
    """

    def __init__(
        self,
        due: NDArray[np.float64],
        sent: NDArray[np.float64],
        answered: NDArray[np.float64],
        status: NDArray[np.int16],
        *,
        bodies: dict[int, bytes] | None = None,
        began_s: float = 0.0,
        first: int = 0,
    ) -> None:
        self.due = due
        self.sent = sent
        self.answered = answered
        self.status = status
        self.bodies = bodies or {}
        self.began_s = began_s
        self.first = first

    def __len__(self) -> int:
        return len(self.due)

    def between(self, begin_s: float, end_s: float) -> Shots:
        """The requests that were due in [begin_s, end_s)."""
        low, high = np.searchsorted(self.due, (begin_s, end_s))
        part = slice(int(low), int(high))
        return Shots(
            self.due[part],
            self.sent[part],
            self.answered[part],
            self.status[part],
            bodies=self.bodies,
            began_s=self.began_s,
            first=self.first + int(low),
        )

    def counts(self) -> dict[int, int]:
        """How many of each status, most frequent first."""
        found = collections.Counter(self.status.tolist())
        return dict(found.most_common())

    def count(self, status: int) -> int:
        """How many of one status."""
        return int(np.count_nonzero(self.status == status))

    @property
    def answered_count(self) -> int:
        """Requests with an answer, whatever it was."""
        return int(np.count_nonzero(self.status > 0))

    def latency_s(self, status: int | None = None, *, from_sent: bool = False) -> NDArray[np.float64]:
        """Seconds to the answer of those answered (with `status`), from when they were due.

        From when they were sent instead, the generator's own lateness is left out, and so is what a server that stalls
        does to those who would have come meanwhile.
        """
        chosen = self.status > 0 if status is None else self.status == status
        begin = self.sent if from_sent else self.due
        taken: NDArray[np.float64] = (self.answered - begin)[chosen & np.isfinite(self.answered)]
        return taken

    def percentile_ms(self, share: float, status: int | None = None, *, from_sent: bool = False) -> float:
        """A percentile of `latency_s` in ms, nan when there is nothing. `share` in 0 to 100."""
        return percentile(self.latency_s(status, from_sent=from_sent), share) * 1e3

    def lateness_ms(self, share: float) -> float:
        """A percentile of how late requests were sent: the generator's own quality."""
        late = self.sent - self.due
        return percentile(late[np.isfinite(late)], share) * 1e3

    def good(self, deadline_s: float) -> NDArray[np.bool_]:
        """bool[count]: answered with 200 within the deadline, counted from when they were due."""
        met: NDArray[np.bool_] = (self.status == OK) & (self.answered - self.due <= deadline_s)
        return met

    def goodput(self, deadline_s: float, seconds: float) -> float:
        """Requests per second that were answered with 200 within the deadline, over a part of that length."""
        return float(np.count_nonzero(self.good(deadline_s))) / seconds

    def samples(self, status: int | None = None) -> Iterator[Sample]:
        """What the sampled bodies of this part say (of answers with `status`)."""
        for place, found in enumerate(self.status.tolist()):
            body = self.bodies.get(self.first + place)
            if body is None or (status is not None and found != status):
                continue
            document = _read(body)
            timing = document.get("timing_ms")
            yield Sample(place, found, str(document.get("code", "")), dict(timing) if isinstance(timing, dict) else {})


def percentile(values: NDArray[np.float64], share: float) -> float:
    """A percentile, nan of nothing."""
    return float(np.percentile(values, share)) if len(values) else float("nan")


def _read(body: bytes) -> dict[str, Any]:
    """An answer's body as a document, empty where it is none."""
    try:
        document = orjson.loads(body) if body[:1] == b"{" else msgpack.unpackb(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
