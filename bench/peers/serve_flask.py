"""Flask behind gunicorn's threaded workers, decoding and the model in the worker."""

from __future__ import annotations

import functools
import threading

from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication
from work import CORES, PORT, Work

app = Flask(__name__)
_local = threading.local()


def work() -> Work:
    """One per thread: a decoder's scratch buffer is not for two."""
    found = getattr(_local, "work", None)
    if found is None:
        found = _local.work = Work()
    return found


@app.post("/predict")
def predict() -> Response:
    return Response(work().reply(request.get_data(cache=False)), mimetype="application/json")


class Server(BaseApplication):
    """gunicorn, set up from here."""

    def load_config(self) -> None:
        settings = {
            "bind": f"127.0.0.1:{PORT}",
            # (2 x cores) + 1 workers is where to begin. Source: gunicorn, "Design", https://docs.gunicorn.org/en/latest/design.html
            "workers": 2 * CORES + 1,
            # The sync worker knows no keep-alive; the threaded one is what gunicorn has for it. Source: as above.
            # One thread: the work is CPU, more would only wait for each other.
            "worker_class": "gthread",
            "threads": 1,
            "keepalive": 75,
            # A heartbeat file on a disk can block a worker. Source: gunicorn, "FAQ", https://gunicorn.org/faq
            "worker_tmp_dir": "/dev/shm",
            "loglevel": "warning",
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return app


if __name__ == "__main__":
    functools.partial(Server().run)()
