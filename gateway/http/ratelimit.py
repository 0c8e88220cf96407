"""What a client is told of its limits: `RateLimit` and `RateLimit-Policy`, as structured fields. No policy, no state.

Source: draft-ietf-httpapi-ratelimit-headers-10. A policy's quota is the burst, its window the time that the rate takes
to refill it; `t` is when all of it is there again, and on a refusal the same point in time as Retry-After.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.scheduling.limiter import Client
    from gateway.scheduling.ticket import Priority

NAMES = ("realtime", "batch")
"""Of the policies, by class."""

IN_FLIGHT = "in_flight"
"""Of the policy without a window."""

_NS = 1_000_000_000


def header_text(client: Client, priority: Priority, now_ns: int, *, ending: int = 0, retry_s: int | None = None) -> str:
    """The two headers' lines, "" for a client without a limit.

    `ending`: images in flight that are not any more once this reply is sent. `retry_s`: what Retry-After says on a
    refusal of the limits' own.
    """
    if not client.limited:
        return ""
    policies, states = [], []
    meter = client.meters[priority]
    if meter is not None:
        name = NAMES[priority]
        policies.append(f'"{name}";q={meter.burst};w={meter.window_s};qu="images"')
        seconds = -(-meter.full_ns(now_ns) // _NS) if retry_s is None else retry_s
        states.append(f'"{name}";r={meter.remaining(now_ns)};t={seconds}')
    if client.in_flight_max:
        policies.append(f'"{IN_FLIGHT}";q={client.in_flight_max};qu="images"')
        states.append(f'"{IN_FLIGHT}";r={max(0, client.in_flight_max - client.in_flight + ending)}')
    return f"RateLimit-Policy: {', '.join(policies)}\r\nRateLimit: {', '.join(states)}\r\n"
