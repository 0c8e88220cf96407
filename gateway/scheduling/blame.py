"""Whose fault a worker's death was: images that crash workers are found, convicted, and refused for a while.

Whoever was in the batch that a worker died or hung on runs alone from then on. A second crash is proof. A death that
came from outside (SIGKILL: the kernel's, an operator's) proves nothing; but nobody is tried for ever.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from gateway import errors

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Ticket

CRASHES_MAX = 2
"""Workers that an image may crash or hang."""

DEATHS_MAX = 5
"""Workers that may die around an image in any way."""

CONVICTION_NS = 600_000_000_000
"""How long the same pixels are refused."""

CONVICTIONS_MAX = 3
"""Images of one client that may be convicted within CONVICTION_NS; then nothing of it is taken until that is over."""

DIGESTS_MAX = 1024
CLIENTS_MAX = 4096
"""What is remembered of one model, and of all clients; the oldest is forgotten first."""


class Verdict(enum.Enum):
    """What becomes of an image whose worker died."""

    AGAIN = "again"
    LOST = "lost"
    ACCUSED = "accused"


class Blame:
    """`accused`: images with two crashes, still in their slots, that wait for `convict` with their digest."""

    __slots__ = ("_clients", "_digests", "accused")

    def __init__(self) -> None:
        self.accused: list[Ticket] = []
        self._digests: dict[int, dict[bytes, int]] = {}
        self._clients: dict[Hashable, deque[int]] = {}

    def strike(self, ticket: Ticket, *, crashed: bool) -> Verdict:
        """The worker of a live ticket is dead, or gave it up. `crashed`: by itself, not by a kill from outside."""
        ticket.deaths += 1
        ticket.crashes += crashed
        if ticket.crashes >= CRASHES_MAX:
            self.accused.append(ticket)
            return Verdict.ACCUSED
        return Verdict.LOST if ticket.deaths >= DEATHS_MAX else Verdict.AGAIN

    def convict(self, ticket: Ticket, digest: bytes, now_ns: int) -> None:
        """Remember the pixels of an accused ticket, and whose it was."""
        self.accused.remove(ticket)
        known = self._digests.setdefault(ticket.line.index, {})
        known.pop(digest, None)
        known[digest] = now_ns + CONVICTION_NS
        if len(known) > DIGESTS_MAX:
            del known[next(iter(known))]
        if ticket.client is None:
            return
        times_ns = self._clients.pop(ticket.client, None) or deque(maxlen=CONVICTIONS_MAX)
        times_ns.append(now_ns)
        self._clients[ticket.client] = times_ns
        if len(self._clients) > CLIENTS_MAX:
            del self._clients[next(iter(self._clients))]

    def covers(self, line: Line) -> bool:
        """Whether any pixels are refused for this model, so that digests have to be made."""
        return line.index in self._digests

    def is_convicted(self, line: Line, digest: bytes, now_ns: int) -> bool:
        """Whether just these pixels crashed the model lately."""
        known = self._digests.get(line.index, {})
        while known and next(iter(known.values())) <= now_ns:
            del known[next(iter(known))]
        if not known:
            self._digests.pop(line.index, None)
        return digest in known

    def forget(self, line: Line) -> None:
        """The model is gone; another version may be better."""
        self._digests.pop(line.index, None)

    def check(self, client: Hashable, now_ns: int) -> None:
        """Raises RateLimited when too many of this client's images were convicted."""
        if not self._clients or (times_ns := self._clients.get(client)) is None:
            return
        end_ns = times_ns[0] + CONVICTION_NS
        if len(times_ns) < CONVICTIONS_MAX or now_ns >= end_ns:
            return
        raise errors.RateLimited(
            f"{CONVICTIONS_MAX} images of this client crashed the model; nothing more of it is taken for a while",
            retry_after_s=-(-(end_ns - now_ns) // 1_000_000_000),
        )
