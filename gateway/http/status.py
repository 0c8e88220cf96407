"""The pages that say how it stands: liveness, readiness, models, metrics, the OpenAPI document. No policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway import errors
from gateway.http import openapi, responses
from gateway.http.responses import Reply
from gateway.models.repository import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.driver import Driver
    from gateway.lifecycle.routes import Routes
    from gateway.models.repository import ModelVersion
    from gateway.scheduling.line import Line


class Status:
    """Answers from what the driver knows, and from the routes of the moment."""

    def __init__(self, driver: Driver, routes: Callable[[], Routes]) -> None:
        self._driver = driver
        self._routes = routes
        self.draining = False
        """Whether the gateway is going down. It goes on serving, but nobody new is to be sent here."""

    def livez(self, request_id: str) -> Reply:
        """200 while the event loop answers at all."""
        return _json({"status": "alive"}, request_id)

    def readyz(self, request_id: str) -> Reply:
        """200 when every model asked for at start is up, else 503; what each model lacks either way."""
        draining = self.draining or self._driver.core.draining
        ready = not draining and self._driver.core.is_ready
        document = {
            "status": "ready" if ready else "draining" if draining else "not_ready",
            "decoders_ready": sum(decoder.ready for decoder in self._driver.core.feeder.decoders),
            "models": [
                {"name": model.name, "version": model.version, **self._state(index)} for index, model in self._served()
            ],
        }
        return _json(document, request_id, 200 if ready else 503)

    def metrics(self, request_id: str) -> Reply:
        """Prometheus's text format."""
        return Reply(self._driver.metrics.expose(), "text/plain; version=0.0.4; charset=utf-8", request_id)

    def models(self, request_id: str) -> Reply:
        """Every model with its versions and states."""
        found: dict[str, dict[str, Any]] = {}
        for index, model in self._served():
            entry = found.setdefault(model.name, {**self._routed(model.name), "versions": []})
            entry["versions"].append({"version": model.version, **self._state(index)})
        return _json({"models": list(found.values())}, request_id)

    def model(self, name: str, request_id: str) -> Reply:
        """One model: the effective contract, state, device and measured profile of each version."""
        versions = []
        for index, model in self._served():
            if model.name == name:
                versions.append(
                    {
                        "version": model.version,
                        **self._state(index),
                        "workers": self._workers(index),
                        "batching": self._batching(index),
                        "label_count": len(model.labels),
                        "slot_count": self._driver.memory.models[index].slot_count,
                        "contract": describe(model.contract),
                    }
                )
        if not versions:
            raise errors.UnknownModel("there is no such model; see /models")
        return _json({**self._routed(name), "versions": versions}, request_id)

    def _routed(self, name: str) -> dict[str, Any]:
        """A model's default version, None while none answers; and what an operator wants and cannot have now."""
        routes = self._routes()
        notes = {"notes": list(routes.reports[name])} if name in routes.reports else {}
        return {"name": name, "default_version": routes.defaults.get(name), **notes}

    def openapi(self, request_id: str) -> Reply:
        """The OpenAPI document of this gateway."""
        return _json(openapi.document([model for _, model in self._served()]), request_id)

    def _served(self) -> list[tuple[int, ModelVersion]]:
        """(line index, model) of what takes requests, by name and version."""
        open_lines = [line.index for line in self._driver.core.lines if not line.closed]
        return sorted(
            ((index, self._driver.models[index]) for index in open_lines),
            key=lambda pair: (pair[1].name, pair[1].version),
        )

    def _line(self, index: int) -> Line:
        return next(line for line in self._driver.core.lines if line.index == index)

    def _state(self, index: int) -> dict[str, Any]:
        """One of STATES; with a detail when it is not ready."""
        driver = self._driver
        state = driver.children.states[index]
        workers = [worker for worker in driver.core.workers if index in worker.models]
        if driver.core.is_up(self._line(index)):
            return {"state": "ready"}
        if state.failures:
            return {"state": "failed", "detail": "; ".join(dict.fromkeys(state.failures.values()))}
        if workers and all(worker.restarts.failing for worker in workers):
            return {"state": "failed", "detail": "every worker keeps dying; see the log for its last words"}
        if (share := state.built_share) is not None:
            detail = f"its engine is being built, {share:.0%}; it is kept for the next time"
            return {"state": "building", "detail": detail, "share": round(share, 3)}
        if any(worker.was_ready for worker in workers):
            return {"state": "restarting", "detail": "its worker died and is being replaced"}
        return {"state": "loading", "detail": ", ".join(map(str, state.loading.values())) or "waiting for its worker"}

    def _batching(self, index: int) -> dict[str, Any] | None:
        """How full and how carefully batches are planned now; None until a worker has measured one."""
        now = self._line(index).statistics()
        if now is None:
            return None
        return {
            "size_best": now.size_best,
            "size_planned": now.size_planned,
            "margin_ms": round(now.margin_ns / 1e6, 3),
            "inflation": round(now.inflation, 3),
            "overrun_ms": round(now.overrun_ns / 1e6, 3),
            "queue_quota": now.quota,
        }

    def _workers(self, index: int) -> list[dict[str, Any]]:
        """Per worker that has the model: device, provider, and l(b): measured at load, and expected now, of the sizes
        that fit in its memory.
        """
        driver = self._driver
        sizes = driver.models[index].contract.batching.sizes
        found = []
        for worker in driver.core.workers:
            loaded = driver.children.states[index].loaded.get(worker.index)
            profile = worker.profiles.get(index)
            if loaded is None or profile is None:
                continue
            found.append(
                {
                    "worker": worker.index,
                    "device": driver.children.devices[worker.seat],
                    "runs_on": driver.children.worker_devices[worker.index],
                    "provider": loaded.provider,
                    "load_ms": round(loaded.load_ns / 1e6, 1),
                    "outputs": {field.name: {"dtype": field.dtype, "shape": field.shape} for field in loaded.fields},
                    "profile": [
                        {
                            "size": p.size,
                            "p50_ms": round(p.p50_ns / 1e6, 3),
                            "p99_ms": round(p.p99_ns / 1e6, 3),
                            "lead_ms": round(p.lead_ns / 1e6, 3),
                            "expected_ms": round(profile.times_ns[p.size] / 1e6, 3),
                        }
                        for p in loaded.profile
                        if p.size in profile.times_ns
                    ],
                    "sizes_given_up": [size for size in sizes if size not in profile.times_ns],
                }
            )
        return found


def _json(document: dict[str, Any], request_id: str, status: int = 200) -> Reply:
    return Reply(orjson.dumps(document), responses.JSON, request_id, status)
