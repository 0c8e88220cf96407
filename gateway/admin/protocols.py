"""What the admin front asks of the rest of the gateway. `gateway.lifecycle` does it; the front decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gateway.lifecycle.desired import Want
    from gateway.lifecycle.operations import Operation, Operations


class Changes(Protocol):
    """Changes to what is served. Each raises UnknownModel, Overloaded and other refusals before anything is begun."""

    operations: Operations

    def load(self, name: str, versions: tuple[int, ...] | None = None, *, default: int | None = None) -> Operation:
        """Serve these versions too; None: what the repository and the settings say. `default`: one of them."""

    def unload(self, name: str, version: int | None = None) -> Operation:
        """Serve one version less, or none of the model."""

    def reload(self, name: str, version: int | None = None) -> Operation:
        """Read the files again, and serve the old ones until the new ones are warm."""

    def configure(self, name: str, want: Want) -> Operation:
        """Make all of `want` so."""

    def evaluate(self) -> Operation:
        """Look at the repository now."""

    def restart(self, worker: int) -> Operation:
        """Start a worker's process anew."""

    def models(self) -> list[dict[str, Any]]:
        """Every model that is known, as plain data."""

    def model(self, name: str) -> dict[str, Any]:
        """One model. Raises UnknownModel."""

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, as plain data."""


class Facts(Protocol):
    """What the gateway is and does now."""

    def status(self) -> dict[str, Any]:
        """As plain data: version, pid, uptime, readiness, memory, images in flight."""

    def drain(self) -> None:
        """As SIGTERM does: accept nothing new, answer what was accepted, end."""
