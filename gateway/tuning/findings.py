"""What a tuning run has learnt so far. Filled stage by stage: a run that is stopped says what it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from gateway.models.spec import Contract
    from gateway.tuning.choice import Choice
    from gateway.tuning.decode import DecodeRate, Skipped
    from gateway.tuning.search import Probe
    from shm.wire import ProfilePoint


class Goal(NamedTuple):
    """What is tuned for what. `text`: the model.toml as read. `images`: a folder of photos; None: a made-up one."""

    model: ModelVersion
    text: str
    settings: Settings
    deadline_ms: float
    seconds: float
    images: Path | None


class Findings:
    """`points` by size, the last measurement of each. `rate`: sustained images/s, confirmed; None: not known."""

    def __init__(self) -> None:
        self.points: dict[int, ProfilePoint] = {}
        self.decode: DecodeRate | None = None
        self.photo_count = 0
        self.skipped: list[Skipped] = []
        self.choice: Choice | None = None
        self.contract: Contract | None = None
        self.probes: list[Probe] = []
        self.rate: float | None = None

    def note(self, points: Iterable[ProfilePoint]) -> None:
        """Points that were just measured stand over older ones of their size."""
        self.points |= {point.size: point for point in points}
