"""Models and workers as plain data, for the admin front. Reads what others keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.lifecycle.catalogue import name_of
from gateway.scheduling.ticket import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.driver import Driver
    from gateway.lifecycle.catalogue import Catalogue, Key, Resident
    from gateway.lifecycle.turnover import Turnover
    from gateway.metrics import Sample
    from gateway.scheduling.placement import WorkerState


class Views:
    """What there is to see of one gateway's models."""

    def __init__(self, driver: Driver, catalogue: Catalogue, turnover: Turnover) -> None:
        self._driver = driver
        self._catalogue = catalogue
        self._turnover = turnover

    def models(self) -> list[dict[str, Any]]:
        """Every model that is known, by name."""
        states = self._states()
        return [self._catalogue.document(name, states) for name in self._catalogue.names()]

    def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        return self._catalogue.document(name, self._states())

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, those that are on their way out too."""
        return [self._worker(worker) for worker in self._driver.core.workers]

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        for seat, size in self._turnover.room.memory_sizes.items():
            yield "penstock_worker_memory_bytes", (str(seat),), size
        for seat, look in self._turnover.room.gpus.items():
            if look.memory is not None:
                yield "penstock_gpu_memory_used_bytes", (str(seat),), look.memory.used_size
                yield "penstock_gpu_memory_bytes", (str(seat),), look.memory.size
            if look.power_w is not None:
                yield "penstock_gpu_power_watts", (str(seat),), look.power_w
        yield "penstock_unload_given_back_ratio", (), self._turnover.given_back_share

    def _states(self) -> dict[Key, dict[str, Any]]:
        """What is known of versions beyond their files, by key."""
        found = {resident.key: self._resident(resident) for resident in self._catalogue.residents.values()}
        for key in self._turnover.arriving:
            described = self._coming(self._built_share(key))
            found[key] = {**described, "reloading": True} if key in found else described
        for key in self._turnover.leaving:
            found[key] = {"state": "unloading"}
        return found

    def _resident(self, resident: Resident) -> dict[str, Any]:
        line = resident.line
        state = self._driver.children.states[line.index]
        found: dict[str, Any] = {"line": line.index, "memory_size": self._turnover.room.need_of(resident)}
        if resident.is_lazy:
            found["lazy"] = True
        if self._driver.core.is_up(line):
            return {"state": "ready", **found}
        if state.failures:
            return {"state": "failed", "error": "; ".join(dict.fromkeys(state.failures.values())), **found}
        return {**self._coming(state.built_share), **found}

    def _built_share(self, key: Key) -> float | None:
        """How much of the engine of a version that is being loaded is built; None while none is being built."""
        states, models = self._driver.children.states, self._driver.models
        shares = [states[index].built_share for index, model in models.items() if (model.name, model.version) == key]
        return next((share for share in shares if share is not None), None)

    @staticmethod
    def _coming(share: float | None) -> dict[str, Any]:
        """A version that is not up yet."""
        return {"state": "loading"} if share is None else {"state": "building", "share": round(share, 3)}

    def _worker(self, worker: WorkerState) -> dict[str, Any]:
        children = self._driver.children
        child = self._driver.supervisor.children.get((Role.WORKER, worker.index))
        models = [self._driver.models[index] for index in sorted(worker.models) if index in self._driver.models]
        return {
            "index": worker.index,
            "seat": worker.seat,
            "device": children.devices[worker.seat],
            "runs_on": children.worker_devices.get(worker.index, ""),
            "pid": child.pid if child is not None else None,
            "state": worker.state.value,
            "retiring": worker.retiring,
            "incarnation": child.incarnation if child is not None else None,
            "models": [name_of((model.name, model.version)) for model in models],
            "memory_size": self._turnover.room.memory_sizes.get(worker.seat),
            "restarts": worker.restarts.total,
            "obituary": children.obituaries.get(worker.seat),
        }
