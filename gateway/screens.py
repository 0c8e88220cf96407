"""What the command line shows: bars of classes, tables of models, the report of `penstock check`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvloop
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway import config, logs
from gateway.driver import Driver
from gateway.errors import InvalidModel
from gateway.models.repository import contract_toml, read_version, scan

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType

    from gateway.models.repository import ModelVersion

BAR_WIDTH = 32
POLL_S = 0.05


def answer(title: str, answered: dict[str, Any]) -> RenderableType:
    """One image's answer: bars for classes, shapes for outputs, a sentence for an error."""
    if "error" in answered:
        error = answered["error"]
        return Text.assemble((title, "bold"), "  ", (error["code"], "bold red"), f"  {error['detail']}")
    if "outputs" in answered:
        lines = [Text(f"  {name}  {tensor['dtype']}{tensor['shape']}") for name, tensor in answered["outputs"].items()]
        return Group(Text(title, "bold"), *lines)
    table = Table.grid(padding=(0, 2))
    for row in answered["prediction"]:
        probability = row["probability"]
        filled = round(min(max(probability, 0.0), 1.0) * BAR_WIDTH)
        bar = Text("█" * filled, "green") + Text("·" * (BAR_WIDTH - filled), "dim")
        table.add_row(f"{probability:7.2%}", bar, escape(row["class"]), Text(str(row["index"]), "dim"))
    return Group(Text(title, "bold"), table)


def models(listed: list[dict[str, Any]]) -> Table:
    """`GET /models` as a table."""
    table = Table("model", "version", "state", "detail")
    for model in listed:
        for version in model["versions"]:
            default = " (default)" if version["version"] == model["default_version"] else ""
            state = version["state"]
            colour = {"ready": "green", "failed": "red"}.get(state, "yellow")
            table.add_row(
                escape(model["name"]),
                f"{version['version']}{default}",
                Text(state, colour),
                escape(version.get("detail", "")),
            )
    return table


def check(console: Console, directory: Path, device: str) -> bool:
    """Read, load, warm and measure every model in `directory`; print the report. Whether any was refused.

    Raises: InvalidModel, InvalidSettings.
    """
    found = _find(directory)
    settings = config.load(None, {}, {"devices": (device,), "decoders": 1})
    stop_logs = logs.start("error")
    try:
        with console.status(f"loading {len(found)} model(s) in a worker on {device}") as spinner:
            driver = uvloop.run(_load(found, settings, spinner.update))
    finally:
        stop_logs()
    for model, state in zip(driver.models.values(), driver.children.states.values(), strict=True):
        console.rule(f"{escape(model.name)}/{model.version}")
        console.print(Text(contract_toml(model.contract).rstrip()))
        if state.failures:
            console.print(Text.assemble(("refused  ", "bold red"), next(iter(state.failures.values()))))
            continue
        loaded = next(iter(state.loaded.values()))
        console.print(
            Text.assemble(("good  ", "bold green"), f"{loaded.provider}, {len(model.labels)} labels, outputs ")
            + Text(", ".join(f"{field.name} {field.dtype}{list(field.shape)}" for field in loaded.fields))
        )
        profile = Table("batch size", "p50 ms", "p99 ms", "images/s")
        for point in loaded.profile:
            profile.add_row(
                str(point.size),
                f"{point.p50_ns / 1e6:.2f}",
                f"{point.p99_ns / 1e6:.2f}",
                f"{point.size / max(point.p50_ns, 1) * 1e9:,.0f}",
            )
        console.print(profile)
        if given_up := model.contract.batching.sizes[len(loaded.profile) :]:
            words = f"batches of {', '.join(map(str, given_up))} do not fit in the memory of {device}"
            console.print(Text.assemble(("given up  ", "bold yellow"), words))
    return any(state.failures for state in driver.children.states.values())


def _find(directory: Path) -> list[ModelVersion]:
    """`directory` as a version, a model, or a repository."""
    if (directory / "model.toml").is_file():
        return [read_version(directory)]
    if directory.is_dir() and any((child / "model.toml").is_file() for child in directory.iterdir()):
        versions = [read_version(child) for child in directory.iterdir() if (child / "model.toml").is_file()]
        return sorted(versions, key=lambda model: model.version)
    return scan(directory, "all")


async def _load(found: list[ModelVersion], settings: config.Settings, progress: Any) -> Driver:
    """Run the models in a real worker until each is warm or refused."""
    driver = Driver(settings, found)
    driver.start()
    try:
        while not all(state.loaded or state.failures for state in driver.children.states.values()):
            if driver.core.workers[0].restarts.failing:
                stuck = [
                    str(model.directory)
                    for model, state in zip(driver.models.values(), driver.children.states.values(), strict=True)
                    if not state.loaded and not state.failures
                ]
                raise InvalidModel(f"the worker keeps dying, on one of {', '.join(stuck)}; its last words are above")
            for model, state in zip(driver.models.values(), driver.children.states.values(), strict=True):
                for stage in state.loading.values():
                    progress(f"{escape(model.name)}/{model.version}: {stage}")
            await asyncio.sleep(POLL_S)
    finally:
        await driver.stop(0.0)
        driver.memory.close()
    return driver
