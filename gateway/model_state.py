"""How one model stands with the workers that are to have it: what each of them said last. Kept by gateway.children."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shm import wire

BUILDING = "building"
"""The stage of a model whose engine is being built. It may take minutes, and is shown as a state of its own."""

STATES = {
    "ready": "a worker that is up has it",
    "loading": "its worker starts, or loads, warms and measures it",
    "building": "its worker builds the engine, which may take minutes; `share` of it is done",
    "restarting": "its worker died and is being replaced",
    "failed": "a worker refused it, or keeps dying; `detail` says why",
}
"""The states of a version on the public front. Operators see `unloading` and `unloaded` besides."""

_MILESTONES = 4
"""How often the log says how far an engine is."""


class Stage(NamedTuple):
    """How far a worker is with a model: what it does, in one word, and which share of that is done, 0 to 1."""

    word: str
    share: float

    def __str__(self) -> str:
        return f"{self.word} {self.share:.0%}"

    def is_milestone(self, before: Stage | None) -> bool:
        """Whether the building of an engine has begun, or has come to its next quarter. `before`: the stage before."""
        if self.word != BUILDING:
            return False
        if before is None or before.word != BUILDING:
            return True
        return int(self.share * _MILESTONES) > int(before.share * _MILESTONES)


class ModelState:
    """One model as people see it: what its worker said last, per worker."""

    __slots__ = ("crashes", "failures", "files", "loaded", "loading", "measured")

    def __init__(self) -> None:
        self.crashes: dict[int, int] = {}
        """How often a worker died while it loaded this model."""
        self.loading: dict[int, Stage] = {}
        self.loaded: dict[int, wire.Loaded] = {}
        self.failures: dict[int, str] = {}
        self.files = ""
        """A digest of the files that it was loaded from; see gateway.measured."""
        self.measured: dict[int, list[wire.ProfilePoint]] = {}
        """What batches take, by seat: whoever comes up there next need not measure it again."""

    @property
    def built_share(self) -> float | None:
        """How much of its engine is built, 0 to 1, where the least is; None while none is being built."""
        return min((stage.share for stage in self.loading.values() if stage.word == BUILDING), default=None)
