"""The public HTTP front: its routes, and what they share. An `Edge` has its connections; there is no framework.

A route is a method, a path of one to three segments and a handler; that is a dict look-up, not a router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.http.bodies import BodyReader
from gateway.http.edge import Edge, allow
from gateway.http.identity import Identity
from gateway.http.predict import Predict
from gateway.http.status import Status
from gateway.scheduling.limiter import Limiter, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from gateway.config import Settings
    from gateway.driver import Driver
    from gateway.http.responses import Reply
    from gateway.metrics import Sample


class Front(Edge):
    """The public listener."""

    def __init__(self, driver: Driver, settings: Settings) -> None:
        super().__init__(settings, connections_max=settings.connections_max, refusals=driver.metrics.refusals)
        self._driver = driver
        self._status = status = Status(driver, lambda: self.predict.routes)
        self._pages = {
            "livez": status.livez,
            "readyz": status.readyz,
            "metrics": status.metrics,
            "models": status.models,
            "openapi.json": status.openapi,
        }
        self._limiter = _limiter(settings)
        self.predict = Predict(
            driver,
            BodyReader(driver.core, driver.memory.bodies_view, settings),
            limiter=self._limiter,
            identity=Identity(settings, self._limiter),
            refuse=self.refuse,
            lazy_wait_s=settings.lazy_wait_s,
        )
        driver.metrics.probes.append(self._samples)

    def _samples(self) -> Iterator[Sample]:
        yield "penstock_connections", (), self.connection_count
        yield "penstock_clients", (), self._limiter.client_count
        for name, tally in self._limiter.tallies():
            yield "penstock_client_images", (name, "accepted"), tally.accepted
            yield "penstock_client_images", (name, "refused"), tally.refused

    def announce_drain(self) -> None:
        """Not ready any more, besides."""
        super().announce_drain()
        self._status.draining = True
        self.predict.stop_copying()

    async def answer(self, request: web.BaseRequest, request_id: str, received_ns: int) -> Reply:
        """Find the handler by path, then check the method."""
        path = request.raw_path.partition("?")[0]
        if not path.startswith("/"):
            # Absolute-form, as proxies send it; every server must take it (RFC 9112, 3.2.2).
            path = "/" + path.partition("://")[2].partition("/")[2]
        segments = path.split("/")[1:]
        match segments:
            case ["predictions", name] if name:
                allow(request, "POST")
                return await self.predict.answer(request, name, "", request_id, received_ns)
            case ["predictions", name, version] if name and version:
                allow(request, "POST")
                return await self.predict.answer(request, name, version, request_id, received_ns)
            case ["models", name] if name:
                allow(request, "GET")
                return self._status.model(name, request_id)
            case [page] if page in self._pages:
                allow(request, "GET")
                return self._pages[page](request_id)
        raise errors.NotFound("there is nothing here; /openapi.json lists what there is")


def _limiter(settings: Settings) -> Limiter:
    """The limits that the settings ask for."""
    return Limiter(
        anonymous=Rule(
            settings.client_rate,
            settings.client_burst,
            settings.client_batch_rate,
            settings.client_batch_burst,
            settings.client_in_flight_max,
        ),
        keyed={
            client.name: Rule(client.rate, client.burst, client.batch_rate, client.batch_burst, client.in_flight_max)
            for client in settings.clients
        },
        clients_max=settings.clients_max,
        rate_max=settings.rate_max,
        rate_burst_max=settings.rate_burst_max,
    )
