"""Ray Serve: its HTTP proxy, one replica per core."""

from __future__ import annotations

import os
import signal
import tempfile

# Its own switch for rates like these. HAProxy in front, its other one, listens on every interface: not in a bench.
# Source: ray.serve._private.constants (2.60), and Ray's "Enable High Throughput on Ray Serve with KubeRay",
# https://docs.ray.io/en/master/cluster/kubernetes/user-guides/kuberay-serve-high-throughput.html
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from starlette.requests import Request  # noqa: TC002 - read at run time
from starlette.responses import Response
from work import CORES, PORT, Work


# 5 requests in flight, the default, would starve a replica at 128 connections. The replica's CPU share is bookkeeping:
# small enough that all of them and the proxy fit. Source: Ray Serve, "Configure Ray Serve deployments".
@serve.deployment(num_replicas=CORES, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Predict:
    """Decodes and runs the model, inline."""

    def __init__(self) -> None:
        self._work = Work()

    async def __call__(self, request: Request) -> Response:
        return Response(self._work.reply(await request.body()), media_type="application/json")


if __name__ == "__main__":
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=80_000_000,  # small requests do not go through it; the default is a third of the memory
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ.get("PEER_TMP", tempfile.gettempdir() + "/ray"),
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT, "access_log": False},
        logging_config={"enable_access_log": False},
    )
    serve.run(Predict.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
