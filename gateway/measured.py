"""What batches were measured to take, told from one gateway to the one that replaces it: it need not measure again.

Measuring takes several times as long as everything else that a worker does before it is ready, and on a machine whose
cores are busy with serving it measures the wrong thing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from gateway.models.repository import sign
from shm.wire import ProfilePoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.driver import Driver
    from gateway.models.repository import ModelVersion


class Measured(msgspec.Struct, frozen=True):
    """One model on one device, as the settings name it. `files`: a digest of its files' names, sizes and times."""

    name: str
    version: int
    files: str
    device: str
    points: tuple[ProfilePoint, ...]


def files_digest(model: ModelVersion) -> str:
    """Of a model's files as they are now; "" when they cannot be looked at."""
    signature = sign(model.directory)
    return hashlib.blake2b(repr(signature).encode(), digest_size=16).hexdigest() if signature else ""


def collect(driver: Driver) -> list[Measured]:
    """Of all models that are served."""
    found = []
    for index, model in driver.models.items():
        state = driver.children.states[index]
        for seat, points in state.measured.items():
            device = driver.children.devices[seat]
            found.append(Measured(model.name, model.version, state.files, device, tuple(points)))
    return [each for each in found if each.files]


class Known:
    """What was measured elsewhere."""

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        self._points = {(each.name, each.version, each.files, each.device): each.points for each in measured}

    def of(self, model: ModelVersion, files: str, device: str) -> tuple[ProfilePoint, ...]:
        """Of a model with just these files on a device; empty when nothing is known of it."""
        return self._points.get((model.name, model.version, files, device), ())
