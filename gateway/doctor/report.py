"""A checkup as a person reads it: what there is, what can be used, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway.doctor.verdicts import ANY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from gateway.doctor.verdicts import Remark, Verdict
    from shm.checkup import Checkup, Gpu, Package

MIB = 1 << 20
GIB = 1 << 30


def show(
    console: Console,
    found: Checkup,
    verdicts: Sequence[Verdict],
    remarks: Sequence[Remark],
) -> None:
    """Print it."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(found):
        facts.add_row(Text(name, "dim"), escape(value))
    console.print(facts)
    if found.gpus:
        console.print(_gpus(found.gpus))
    console.print(_verdicts(verdicts))
    # Below the table, where commands can be copied in one piece.
    for cure in dict.fromkeys(each.cure for each in verdicts if each.cure):
        whom = " and ".join(dict.fromkeys(_named(each) for each in verdicts if each.cure == cure))
        console.print(Text.assemble((f"for {whom}  ", "bold"), cure), soft_wrap=True)
    for remark in remarks:
        console.print(Text.assemble(("note  ", "yellow"), remark.text), soft_wrap=True)
        if remark.cure:
            console.print(Text(f"      {remark.cure}"), soft_wrap=True)


def _named(verdict: Verdict) -> str:
    return verdict.device if verdict.backend == ANY else f"{verdict.backend} on {verdict.device}"


def _facts(found: Checkup) -> Iterator[tuple[str, str]]:
    host, driver = found.host, found.driver
    container = ", in a container" if host.container else ""
    yield "machine", f"{host.platform}, Linux {host.kernel}, {host.libc}, {host.core_count} cores{container}"
    yield "python", f"{host.python}  {host.executable}"
    limits = [] if host.memory_size_max is None else [f"memory {host.memory_size_max / GIB:.1f} GiB"]
    limits += [] if host.memlock_size_max is None else [f"locked memory {host.memlock_size_max / MIB:,.0f} MiB"]
    yield "limits", ", ".join(limits) or "none"
    yield "driver", _driver(found)
    if driver.visible is not None:
        yield "CUDA_VISIBLE_DEVICES", driver.visible or "(empty)"
    runtime = found.onnxruntime
    yield "onnxruntime", _package(runtime, f", for {f'CUDA {runtime.cuda}' if runtime.cuda else 'the CPU'}")
    yield "onnx", _package(found.onnx)
    yield "cuda-python", _package(found.cuda)
    yield "tensorrt", _package(found.tensorrt, ", builds engines" if found.tensorrt.builder else ", runs engines only")
    yield "nvidia-ml-py", _package(found.nvml)
    if found.tensorrt.version:
        engines = found.engines
        size = f"{engines.file_count} files, {engines.size / MIB:,.0f} MiB; {engines.free_size / GIB:,.0f} GiB free"
        yield "engines", f"{engines.path or 'none'}  {size}"


def _driver(found: Checkup) -> str:
    driver = found.driver
    version = driver.version or driver.module
    if not version:
        return "none"
    cuda = f", knows CUDA up to {driver.cuda // 1000}.{driver.cuda % 1000 // 10}" if driver.cuda else ""
    return f"NVIDIA {version}{cuda}"


def _package(package: Package, more: str = "") -> str:
    if not package.version:
        return "does not import" if package.problem else "not installed"
    installed = [f"{name} {version}" for name, version in package.installed.items()]
    return f"{' and '.join(installed) or package.version}{more}"


def _gpus(gpus: Sequence[Gpu]) -> Table:
    table = Table("GPU", "UUID", "memory used", "compute capability", "persistence", "MIG", "processes")
    for gpu in gpus:
        persistence = {True: "on", False: "off", None: "?"}[gpu.persistence]
        table.add_row(
            f"{gpu.index}  {escape(gpu.name)}",
            gpu.uuid,
            f"{gpu.memory_used_size / GIB:.1f} of {gpu.memory_size / GIB:.1f} GiB",
            ".".join(map(str, gpu.capability)),
            persistence,
            f"{len(gpu.slices)} slices" if gpu.mig else "off",
            str(len(gpu.occupants)),
        )
        for part in gpu.slices:
            table.add_row(f"   {escape(part.name)}", part.uuid, f"{part.memory_size / GIB:.1f} GiB", "", "", "", "")
    return table


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    table = Table("device", "backend", "verdict")
    for each in verdicts:
        if each.problem:
            verdict = Text(each.problem, "red" if each.asked else "")
        else:
            verdict = Text("ok; its trial gave right answers" if each.tried else "ok", "green")
        table.add_row(escape(f"{each.device}  {each.label}".rstrip()), each.backend, verdict)
    return table
