"""`penstock demo`: the demo model in the user's cache, the whole server around it, one real photo through it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import skimage
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from gateway import client, config, screens, server
from gateway.demo import model
from gateway.demo.weights import UnsafeWeights

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["UnsafeWeights", "build", "repository", "run"]

PHOTO = Path(skimage.__file__).parent / "data" / "coffee.png"
"""A cup of coffee on a table, by Rachel Michetti; CC0. It comes with scikit-image."""

NAME = "efficientnet_lite0"


def repository() -> Path:
    """Where demo models are kept: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "penstock" / "models"


def run(console: Console, *, port: int, once: bool) -> int:
    """Build, serve, ask, show; then serve on, unless `once`. Returns the exit status.

    Raises: InvalidSettings, InvalidModel.
    """
    root = build(console)
    settings = config.load(None, os.environ, {"models": str(root), "port": port, "log_level": "warning"})

    async def ask(gateway: server.Gateway) -> None:
        with console.status("starting the gateway, its decoders and its worker"):
            await gateway.wait_ready()
        console.print(f"serving [bold]{NAME}[/] on {gateway.url}")
        photo = PHOTO.read_bytes()
        answers = await asyncio.to_thread(client.predict, gateway.url, NAME, [photo], None)
        console.print(screens.answer(PHOTO.name, answers[0]))
        console.print("\nthe same with curl:")
        line = f"  curl --data-binary @{PHOTO} -H 'Content-Type: image/png' {gateway.url}/predictions/{NAME}"
        console.print(Text(line, "cyan"), soft_wrap=True)
        if not once:
            console.print("\nserving until Ctrl-C")
            await server.forever(gateway)

    return server.run(settings, ask)


def build(console: Console) -> Path:
    """Write the demo model into the cache, with progress; nothing to do when it is there."""
    root = repository()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"building {NAME}", total=1.0)
        model.build(root, lambda stage, share: progress.update(bar, description=f"{NAME}: {stage}", completed=share))
    console.print(f"{NAME} is in {root}")
    return root
