"""Which image goes to which decoder, when. A free slot is the admission to decoding.

A decoder works through what it holds in order, and nothing can be taken back, so it is given little: images worth
DEPTH_NS of decoding, but always at least one; and the next ones only when less than REFILL_NS is left, so that busy
decoders get few full frames rather than many small ones, each of which wakes three processes. Estimates come from the
encoded size, corrected by what was measured.

The last decoder is the spare one: thumbnails go to the others until those are full, so that it is idle when a large
photo or a medium one comes; and large photos never take every decoder while small images are about, so that a
12-megapixel upload does not stand in front of a thumbnail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.restarts import ChildState
from gateway.scheduling.ticket import TENSOR, Fill, Send, Stage, Ticket, TicketQueue
from shm.arena import SlotState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Effect

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_FILLING = Stage.FILLING
_SLOT_FILLING = SlotState.FILLING
_SLOT_FREE = SlotState.FREE
_SLOT_ZOMBIE = SlotState.ZOMBIE

DEPTH_NS = 4_000_000
"""Estimated decoding work that one decoder may hold."""

REFILL_NS = 1_500_000
"""A decoder that holds this much estimated work gets nothing more yet; it is far longer than a hop takes."""

TINY_NS = 500_000
"""An image estimated below this is not worth waking another process for."""

LARGE_NS = 8_000_000
"""An image estimated above this is large."""

SMALL_MEMORY_NS = 1_000_000_000
"""How long after the last small image a decoder stays reserved for the next one."""

BASE_COST_NS = 60_000
"""Of every image: header, resize, bookkeeping."""

_RATE_MIN, _RATE_MAX, _RATE_START = 1.0, 60.0, 8.0
"""ns per encoded byte: bounds and first guess (224x224 q85: 9; 1080p: 7; 12 MP: 5, measured)."""

_SMOOTHING = 0.02

CAUTION = 1.5
"""Photos of one size take up to so many times the estimate."""

SLIP_STEP_NS, SLIP_ODDS, SLIP_NS_MAX = 2_000_000, 200, 100_000_000
"""How decoding that takes longer than expected is learnt: the step, and how many images may be later than that."""

SLIP_MEMORY_NS = 1_000_000_000
"""A slip fades to nothing in this time: if it kept everybody out, no image would ever show that it is over."""


class DecoderState(ChildState):
    """One decoder as the core sees it. `held` is what it was sent and has not answered, in that order."""

    __slots__ = ("cost_ns", "due_ns", "held", "large_count")

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.held: dict[int, Ticket] = {}
        self.cost_ns = 0
        self.large_count = 0
        self.due_ns = 0
        """When it must have answered something; 0 while it holds nothing."""

    def owes_by_ns(self) -> int | None:
        """When it must have answered something; None while it holds nothing."""
        return self.due_ns or None

    def interrupt(self, now_ns: int) -> bool:
        """No: in the middle of a codec nobody listens."""
        del now_ns
        return False


class Feeder:
    """All decoders, and the choice of the next image for each."""

    __slots__ = (
        "_hang_ns",
        "_last_small_ns",
        "_rate",
        "_slip_at_ns",
        "_slip_ns",
        "decoders",
        "frame_count_max",
        "load_ns",
        "ready_count",
    )

    def __init__(self, decoder_count: int, *, frame_count_max: int, hang_ns: int) -> None:
        self.decoders = [DecoderState(index) for index in range(decoder_count)]
        self.frame_count_max = frame_count_max
        self._hang_ns = hang_ns
        self._rate = _RATE_START
        self._last_small_ns = -SMALL_MEMORY_NS
        self.ready_count = 0
        """Decoders that are up."""
        self.load_ns = 0
        """Estimated decoding work of all images that were accepted and not yet decoded."""
        self._slip_ns = self._slip_at_ns = 0

    def count_ready(self) -> None:
        """A decoder came up or went down."""
        self.ready_count = sum(decoder.ready for decoder in self.decoders)

    def estimate_ns(self, size: int) -> int:
        """Expected decoding time of `size` encoded bytes."""
        return BASE_COST_NS + int(size * self._rate)

    def slip_ns(self, now_ns: int) -> int:
        """By how much images were decoded later than expected, lately; all but one in SLIP_ODDS."""
        left_ns = self._slip_at_ns + SLIP_MEMORY_NS - now_ns
        return self._slip_ns * left_ns // SLIP_MEMORY_NS if left_ns > 0 else 0

    def expected_ns(self, cost_ns: int, count: int, now_ns: int) -> int:
        """How long until `count` more images, which cost `cost_ns` in all, will be decoded. 0 for tensors.

        Behind everything that was accepted, also what they would overtake: then overtaking never breaks a promise.
        """
        if not cost_ns:
            return 0
        decoder_count = self.ready_count
        if cost_ns > LARGE_NS * count:
            decoder_count -= 1  # the spare one is not for large photos while there are small ones
        spent_ns = (self.load_ns + cost_ns) // max(1, decoder_count) + cost_ns // count
        return int(CAUTION * spent_ns) + self.slip_ns(now_ns)

    def enqueue(self, ticket: Ticket) -> None:
        """A ticket (WAITING) joins its model's line for a slot and a decoder."""
        ticket.cost_ns = 0 if ticket.encoding is TENSOR else self.estimate_ns(ticket.size)
        self.load_ns += ticket.cost_ns
        self.queue_of(ticket).push(ticket.due_ns, ticket)

    def leave(self, ticket: Ticket) -> None:
        """A ticket leaves the line for a decoder, in which it is WAITING no more."""
        self.load_ns -= ticket.cost_ns
        self.queue_of(ticket).discard()

    def queue_of(self, ticket: Ticket) -> TicketQueue:
        """The queue that a WAITING ticket stands in."""
        return ticket.line.large if ticket.cost_ns > LARGE_NS else ticket.line.small

    def feed(self, lines: Iterable[Line], now_ns: int) -> list[Effect]:
        """Grant slots and hand out images until no slot, no decoder or no image is left."""
        effects: list[Effect] = []
        frames: dict[int, list[Ticket]] = {}
        waiting = [line for line in lines if line.small or line.large]
        if not waiting:
            return effects
        hungry = [decoder for decoder in self.decoders if decoder.ready and decoder.cost_ns < REFILL_NS]
        while (choice := self._next(waiting, hungry, now_ns)) is not None:
            ticket, decoder = choice
            self.queue_of(ticket).pop()
            slot = ticket.line.arena.admit_nowait()
            assert slot is not None
            ticket.slot = slot
            ticket.stage = _FILLING
            ticket.sent_ns = now_ns
            if decoder is None:
                effects.append(Fill(ticket))
            else:
                self._hold(decoder, ticket, now_ns)
                frames.setdefault(decoder.index, []).append(ticket)
        for index, tickets in frames.items():
            effects.extend(
                Send(index, tickets[start : start + self.frame_count_max])
                for start in range(0, len(tickets), self.frame_count_max)
            )
        return effects

    def _next(
        self, waiting: list[Line], hungry: list[DecoderState], now_ns: int
    ) -> tuple[Ticket, DecoderState | None] | None:
        """The first image in order of service that has a slot, and a decoder that may take it (a tensor needs none)."""
        best: tuple[Ticket, DecoderState | None] | None = None
        for line in waiting:
            if not line.arena.free_count:
                continue
            for queue in (line.small, line.large):
                ticket = queue.peek()
                if ticket is None or (best is not None and best[0].due_ns <= ticket.due_ns):
                    continue
                if ticket.encoding is TENSOR:
                    best = ticket, None
                    continue
                if queue is line.large:
                    decoder = self._for_large(hungry, now_ns)
                elif ticket.cost_ns < TINY_NS:
                    decoder = self._for_tiny(hungry)
                else:
                    decoder = _least_loaded(hungry)
                if decoder is not None:
                    best = ticket, decoder
        return best

    def _for_tiny(self, hungry: list[DecoderState]) -> DecoderState | None:
        """The least loaded decoder but the spare one, which is used when the others are full, not when just busy."""
        spare = self.decoders[-1]
        found = _least_loaded(decoder for decoder in hungry if decoder is not spare)
        if found is None and not any(d.ready and d.cost_ns < DEPTH_NS for d in self.decoders if d is not spare):
            return _least_loaded(hungry)
        return found

    def _for_large(self, hungry: list[DecoderState], now_ns: int) -> DecoderState | None:
        """The least loaded decoder, the spare one first, if another stays free for small images or there are none."""
        chosen = _least_loaded(reversed(hungry))
        if chosen is None or now_ns - self._last_small_ns >= SMALL_MEMORY_NS:
            return chosen
        others = [decoder for decoder in self.decoders if decoder.ready and decoder is not chosen]
        return chosen if not others or any(decoder.large_count == 0 for decoder in others) else None

    def _hold(self, decoder: DecoderState, ticket: Ticket, now_ns: int) -> None:
        decoder.held[ticket.number] = ticket
        decoder.cost_ns += ticket.cost_ns
        if not decoder.due_ns:
            decoder.due_ns = now_ns + self._hang_ns
        if ticket.cost_ns > LARGE_NS:
            decoder.large_count += 1
        else:
            self._last_small_ns = now_ns

    def answered(self, decoder: DecoderState, number: int, decode_ns: int, now_ns: int) -> Ticket | None:
        """A decoder answered an image; None when it never held it (a broken decoder)."""
        ticket = decoder.held.pop(number, None)
        if ticket is None:
            return None
        decoder.worked = True
        decoder.cost_ns -= ticket.cost_ns
        self.load_ns -= ticket.cost_ns
        decoder.due_ns = now_ns + self._hang_ns if decoder.held else 0
        if ticket.cost_ns > LARGE_NS:
            decoder.large_count -= 1
        ticket.decode_ns = decode_ns
        if ticket.expected_ns:
            # A quantile, by steps: one up for each that was later, SLIP_ODDS down for as many that were not.
            slip_ns = self.slip_ns(now_ns)
            step_ns = SLIP_STEP_NS if now_ns - ticket.expected_ns > slip_ns else -SLIP_STEP_NS // SLIP_ODDS
            self._slip_ns, self._slip_at_ns = min(max(0, slip_ns + step_ns), SLIP_NS_MAX), now_ns
        return ticket

    def learn(self, ticket: Ticket) -> None:
        """Correct the estimate by an image that was decoded. Refused ones cost next to nothing and teach nothing: a
        flood of garbage would make every photo look small.
        """
        measured = (ticket.decode_ns - BASE_COST_NS) / max(1, ticket.size)
        self._rate += _SMOOTHING * (min(max(measured, _RATE_MIN), _RATE_MAX) - self._rate)

    def lost(self, decoder: DecoderState, now_ns: int) -> list[Ticket]:
        """A decoder is dead and reaped: what it held, in the order in which it was sent."""
        held = list(decoder.held.values())
        decoder.held.clear()
        self.load_ns -= sum(ticket.cost_ns for ticket in held)
        decoder.cost_ns = decoder.large_count = decoder.due_ns = 0
        decoder.bury(now_ns)
        self.count_ready()
        for ticket in held:
            state = ticket.line.arena.state(ticket.slot)
            assert state in (_SLOT_FILLING, _SLOT_ZOMBIE)
            ticket.line.arena.move(ticket.slot, _SLOT_FREE)
            ticket.slot = -1
        return held


def _least_loaded(decoders: Iterable[DecoderState]) -> DecoderState | None:
    """The decoder with the least work, if it has room."""
    best: DecoderState | None = None
    for decoder in decoders:
        if decoder.cost_ns < DEPTH_NS and (best is None or decoder.cost_ns < best.cost_ns):
            best = decoder
    return best
