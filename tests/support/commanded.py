"""A real gateway whose `Changes` does what the test says: one JSON line in, one out. Beside that, `penstock serve`.

Run as a module it is the gateway; `commanded` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import config, errors, server
from gateway.lifecycle.desired import Want
from tests.support.gateways import (
    ROOT,
    Gateway,
    digest,
    end,
    environment,
    pixels,
    png,
    runtime_folder,
    wait_until,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


OTHER_COUNT = 1009
"""Classes of a model's second form: its answers are other numbers."""


class Commanded(Gateway):
    """A running gateway that takes commands."""

    def tell(self, method: str, *arguments: Any) -> Any:
        """What `Changes.method` answers; of an operation its document, at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def done(self, method: str, *arguments: Any, state: str = "succeeded") -> dict[str, Any]:
        """The document of an operation that was asked for and has ended."""
        begun = self.tell(method, *arguments)
        assert "id" in begun, begun
        ended = self.tell("wait", begun["id"])
        assert ended["state"] == state, ended
        return ended

    def version(self, model: str = "m", version: int = 1) -> dict[str, Any]:
        """One version as the admin front would show it."""
        found = self.tell("model", model)["versions"]
        return next(each for each in found if each["version"] == version)


@contextlib.contextmanager
def commanded(
    repository: Path,
    state: Path,
    *,
    ready: bool = True,
    environ: dict[str, str] | None = None,
    kind: type[Commanded] = Commanded,
    **settings: object,
) -> Iterator[Commanded]:
    """Start one over a repository, with its state in a folder, and stop it at the end if it still runs. `kind`: with
    what further words.
    """
    settings = {"models": repository, "port": 0, "state_dir": state, **settings}
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(runtime_folder())
        log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="penstock-test-log-"))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.commanded"],
            cwd=ROOT,
            env=environment(runtime, **settings) | (environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            running = kind(process, Path(log.name), runtime)
            if ready:
                running.wait_ready()
            yield running
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # else its thread would wait for another command
            end(process)
            process.stdout.close()


def rewrite(root, name="m", version=1, **sections):
    """Another form of a version, in the place of the old one."""
    shutil.rmtree(root / name / str(version))
    return write_model(root, name, version, **sections)


def other(**fake):
    return {"fake": {"class_count": OTHER_COUNT, **fake}}


class Askers:
    """Clients that ask one model without a pause; what came back, in order."""

    def __init__(self, running, count=4, model="m"):
        self._running = running
        self._model = model
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        self.answers: list[tuple[int, str, int, float]] = []
        """(status, body, seed, version that answered)."""

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number):
        seed = number
        with self._running.connect() as connection:
            while not self._ended.is_set():
                seed = (seed + 7) % 50
                answer = connection.ask("POST", f"/predictions/{self._model}", png(seed), Content_Type="image/png")
                self.answers.append((answer.status, answer.body.decode(), seed, answer.document.get("version")))

    def wait_more(self, count=20):
        """Until so many more answers are here."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + count, "answers keep coming")

    def assert_all_ok(self, *counts):
        """Every answer is right, by one of these numbers of classes. How many were right by each."""
        seen = dict.fromkeys(counts, 0)
        for status, body, seed, _ in self.answers:
            assert status == 200, body
            matching = [count for count in counts if f'"index":{digest(pixels(seed), count)},' in body]
            assert matching, body
            seen[matching[0]] += 1
        return seen


# -- the gateway's side ----------------------------------------------------------------------------------------------


async def obey(running: server.Gateway) -> None:
    """Read commands and do what they say, until the end of the input."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
            group.create_task(_answer(running, *json.loads(line)))
    await asyncio.Event().wait()


async def _answer(running: server.Gateway, method: str, *arguments: Any) -> None:
    changes = running.changes
    try:
        if method in {"wait", "operation"}:
            operation = changes.operations.get(*arguments)
            if method == "wait":
                await operation.wait_ended()
        elif method == "configure":
            operation = changes.configure(arguments[0], msgspec.convert(arguments[1], Want, str_keys=True))
        elif method == "load" and len(arguments) > 1:
            operation = changes.load(arguments[0], tuple(arguments[1]))
        else:
            operation = getattr(changes, method)(*arguments)
        found = operation.document() if hasattr(operation, "document") else operation
    except errors.Refusal as refusal:
        found = {"code": refusal.code, "detail": refusal.detail}
    print(json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(server.run(config.load(None, os.environ, {}), obey))
