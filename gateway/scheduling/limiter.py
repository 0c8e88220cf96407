"""Who may send how much: images a second and in flight, by client and class, and a rate over everybody.

The door is `Limiter`. A request's headers make a claim of one image, its body extends the claim to all of them, all or
none; a claim is revoked when overload refused the request, accepted when its images were, released when it is over. A
refusal leaves no trace. State is bounded: a client that is known by its address has an entry while it has something to
remember, there are at most `clients_max` of them, and whoever finds no room shares one entry with the others.
"""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from gateway import errors
from gateway.scheduling.meter import Meter
from gateway.scheduling.ticket import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.scheduling.meter import Charge

LOOKS = 2
"""Entries that are looked at, and dropped when they remember nothing, for each newcomer."""

_NS = 1_000_000_000
_UNBOUNDED = 1 << 62
"""Images in one request of a class without a limit."""


class Rule(NamedTuple):
    """A client's limits; rates in images a second. 0 is no limit.

    A burst of 0 is one second's worth. The batch class has meters of its own; where nothing is said of it, they are
    like the other's.
    """

    rate: float = 0.0
    burst: int = 0
    batch_rate: float = 0.0
    batch_burst: int = 0
    in_flight_max: int = 0

    def meters(self) -> tuple[Meter | None, Meter | None]:
        """A fresh meter for each class, in the order of Priority."""
        batch_burst = self.batch_burst or (0 if self.batch_rate else self.burst)
        return _meter(self.rate, self.burst), _meter(self.batch_rate or self.rate, batch_burst)


class Tally:
    """Images of one client, counted for the metrics."""

    __slots__ = ("accepted", "refused")

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0


class Client:
    """One client's meters, and its images in flight."""

    __slots__ = ("claims", "free", "image_count", "in_flight", "in_flight_max", "limited", "meters", "tally")

    def __init__(self, rule: Rule, tally: Tally) -> None:
        self.meters = rule.meters()
        self.in_flight_max = rule.in_flight_max
        self.limited = any(self.meters) or rule.in_flight_max > 0
        self.in_flight = 0
        self.image_count = 1
        """Images of its last request whose body was read: what its next one is taken to hold, for Retry-After."""
        self.claims: dict[Claim, None] = {}
        """Those that `in_flight` is the sum of; kept where that has a limit."""
        self.tally = tally
        self.free = Claim(self, Priority.REALTIME, 0, 0)
        """What stands for every claim where nothing is limited."""

    def is_idle(self, now_ns: int) -> bool:
        """Whether it is as good as new."""
        return not self.in_flight and not any(meter is not None and meter.full_ns(now_ns) for meter in self.meters)


class Claim:
    """One request's images, as far as they are known. Its client's `free` is shared and stays as it is."""

    __slots__ = ("charges", "client", "deadline_ns", "image_count", "priority")

    def __init__(self, client: Client, priority: Priority, image_count: int, deadline_ns: int) -> None:
        self.client = client
        self.priority = priority
        self.image_count = image_count
        self.deadline_ns = deadline_ns
        self.charges: list[tuple[Meter, Charge]] = []
        """What can be given back still."""


class Limiter:
    """All clients and the meter over them."""

    def __init__(
        self,
        *,
        anonymous: Rule = Rule(),  # noqa: B008 - a tuple
        keyed: Mapping[str, Rule] | None = None,
        clients_max: int = 1,
        rate_max: float = 0.0,
        rate_burst_max: int = 0,
    ) -> None:
        """`anonymous` holds for each address, `keyed` for each key by its name, `rate_max` for all together."""
        self._rule = anonymous
        self._clients_max = clients_max
        self._tallies = {"": Tally()} | {name: Tally() for name in keyed or ()}
        self._keyed = {name: Client(rule, self._tallies[name]) for name, rule in (keyed or {}).items()}
        self._overflow = Client(anonymous, self._tallies[""])
        self._table: OrderedDict[str, Client] = OrderedDict()
        self._total = _meter(rate_max, rate_burst_max)
        self.asks_for_addresses = self._overflow.limited
        """Whether it matters where a request without a key comes from."""

    # -- clients -------------------------------------------------------------------------------------------------

    def keyed(self, name: str) -> Client:
        """The client of a key."""
        return self._keyed[name]

    def address(self, address: str, now_ns: int) -> Client:
        """The client at an address, whatever the address is made of."""
        if not self.asks_for_addresses:
            return self._overflow
        client = self._table.get(address)
        if client is None:
            client = self._enter(address, now_ns)
        return client

    def _enter(self, address: str, now_ns: int) -> Client:
        """An entry for a newcomer, or the one that is shared while all others are in use."""
        table = self._table
        for _ in range(min(LOOKS, len(table))):
            oldest, client = table.popitem(last=False)
            if not client.is_idle(now_ns):
                table[oldest] = client
        if len(table) >= self._clients_max:
            return self._overflow
        table[address] = client = Client(self._rule, self._tallies[""])
        return client

    @property
    def client_count(self) -> int:
        """Entries for addresses."""
        return len(self._table)

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """What was accepted and refused, by the key's name; under "" without a key."""
        yield from self._tallies.items()

    # -- claims --------------------------------------------------------------------------------------------------

    def claim(self, client: Client, priority: Priority, now_ns: int, deadline_ns: int) -> Claim:
        """Charge one image, whatever the request turns out to hold. `release` must follow.

        Raises: RateLimited, Overloaded.
        """
        total = self._total
        if not client.limited and total is None:
            return client.free
        refusal = self._refusal(client, priority, 1, 1, now_ns)
        if refusal is not None:
            client.tally.refused += 1
            if client.image_count > 1:
                # One image may go sooner than a request like the last one, which would come back for nothing.
                likely = min(client.image_count, self._most(client, priority))
                refusal = self._refusal(client, priority, likely, likely, now_ns)
            assert refusal is not None, "what is too much for one is too much for several"
            raise refusal
        claim = Claim(client, priority, 0, deadline_ns)
        self._charge(claim, 1, 1, now_ns)
        return claim

    def extend(self, claim: Claim, image_count: int, priority: Priority, now_ns: int, deadline_ns: int) -> None:
        """The body was read: charge its other images too, in the class that it names. All or none.

        Raises:
            RateLimited, Overloaded: not now. The first image is given back too.
            PayloadTooLarge: so many at once never conform. The first image stays charged, as with any bad body.
        """
        client = claim.client
        if claim is client.free:
            return
        claim.deadline_ns = deadline_ns
        more = image_count - claim.image_count
        moves = priority != claim.priority
        if more or moves:
            most = self._most(client, priority)
            if image_count > most:
                client.tally.refused += image_count
                raise errors.PayloadTooLarge(
                    f"{image_count} images in one request; {most} at once are allowed; send them in several requests"
                )
        client.image_count = image_count
        if not more and not moves:
            return
        if not moves and self._refusal(client, priority, more, more, now_ns) is None:
            self._charge(claim, more, more, now_ns)
            return
        self.revoke(claim)
        claim.priority = priority
        refusal = self._refusal(client, priority, image_count, more, now_ns, claim)
        if refusal is not None:
            client.tally.refused += image_count
            raise refusal
        self._charge(claim, image_count, more, now_ns)

    def revoke(self, claim: Claim) -> None:
        """Nothing was accepted in the end, and not by the client's fault: its rate is as if it had never asked."""
        for meter, charge in claim.charges:
            meter.give_back(charge)
        claim.charges.clear()

    def accept(self, claim: Claim, image_count: int) -> None:
        """All images were accepted; what was charged for them stays charged."""
        claim.client.tally.accepted += image_count
        for meter, charge in claim.charges:
            meter.settle(charge)
        claim.charges.clear()

    def release(self, claim: Claim) -> None:
        """The request is over."""
        for meter, charge in claim.charges:
            meter.settle(charge)
        claim.charges.clear()
        client = claim.client
        client.in_flight -= claim.image_count
        claim.image_count = 0
        client.claims.pop(claim, None)

    # -- deciding ------------------------------------------------------------------------------------------------

    def _charge(self, claim: Claim, cost: int, more: int, now_ns: int) -> None:
        """Charge `cost` images to the rates, and put `more` in flight."""
        client = claim.client
        for meter in (client.meters[claim.priority], self._total):
            if meter is not None:
                claim.charges.append((meter, meter.take(now_ns, cost)))
        client.in_flight += more
        claim.image_count += more
        if client.in_flight_max:
            client.claims[claim] = None

    def _refusal(
        self, client: Client, priority: Priority, cost: int, more: int, now_ns: int, own: Claim | None = None
    ) -> errors.Refusal | None:
        """Why `cost` images may not be charged now, or `more` not be in flight; None when they may.

        `own`: a claim that does not wait for itself. Its Retry-After is the longest wait of all limits.
        """
        meter, total = client.meters[priority], self._total
        rate_ns = meter.wait_ns(now_ns, cost) if meter is not None else 0
        flight_ns = _flight_wait_ns(client, more, now_ns, own)
        total_ns = total.wait_ns(now_ns, cost) if total is not None else 0
        wait_ns = max(rate_ns, flight_ns, total_ns)
        if not wait_ns:
            return None
        retry_s = -(-wait_ns // _NS)
        if rate_ns:
            assert meter is not None
            said = f"this client may send {float(meter.rate):g} {priority.name.lower()} images a second"
            return errors.RateLimited(
                f"{said}, {meter.burst} at once; send the next in {retry_s} s", retry_after_s=retry_s
            )
        if flight_ns:
            said = f"this client may have {client.in_flight_max} images in flight"
            return errors.RateLimited(f"{said}; wait for the answers to those", retry_after_s=retry_s)
        return errors.Overloaded(
            "the server is at the rate that it was set to; try again shortly", retry_after_s=retry_s
        )

    def _most(self, client: Client, priority: Priority) -> int:
        """Images in one request that can ever be within the limits."""
        bounds = [meter.burst for meter in (client.meters[priority], self._total) if meter is not None]
        if client.in_flight_max:
            bounds.append(client.in_flight_max)
        return min(bounds, default=_UNBOUNDED)


def _meter(rate: float, burst: int) -> Meter | None:
    """A rate as it was written (0.1 is a tenth, not the float beside it), with its burst; None for 0."""
    return Meter(Fraction(str(rate)), burst or max(1, ceil(rate))) if rate else None


def _flight_wait_ns(client: Client, more: int, now_ns: int, own: Claim | None) -> int:
    """How long until `more` images can be in flight, at the latest: who is in flight is answered by its deadline."""
    missing = client.in_flight + more - client.in_flight_max
    if not client.in_flight_max or missing <= 0:
        return 0
    wait_ns = 1
    for claim in sorted(client.claims, key=lambda claim: claim.deadline_ns):
        if claim is not own and missing > 0:
            wait_ns = max(1, claim.deadline_ns - now_ns)
            missing -= claim.image_count
    return wait_ns
