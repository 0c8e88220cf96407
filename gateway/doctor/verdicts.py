"""What a checkup means: for each device and backend whether it can be used, and what is worth knowing beside. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gateway.doctor import causes, devices
from gateway.doctor.causes import INSTALL, Cause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.doctor.devices import Choice
    from shm.checkup import Checkup, Opened

ANY = "any"
"""Instead of a backend: what is missing is missing for all of them."""

MIB = 1 << 20


class Verdict(Struct, frozen=True, kw_only=True):
    """Whether models of one backend can run on one device. `problem`: empty if so. `cure`: a command or a step."""

    device: str
    backend: str
    label: str = ""
    """What the device is, for people."""
    problem: str = ""
    cure: str = ""
    asked: bool = True
    """Whether the exit status depends on it."""
    tried: bool = False
    """Whether a small model was run on it."""

    @property
    def good(self) -> bool:
        """Whether it can be used."""
        return not self.problem


class Remark(Struct, frozen=True, kw_only=True):
    """Something that stops nothing."""

    text: str
    cure: str = ""


def asked_devices(given: Sequence[str], settings: Sequence[str], found: Checkup) -> list[str]:
    """What is to be judged: the devices given, else the settings' if a GPU is among them, else all there are."""
    if given:
        return list(dict.fromkeys(given))
    if any(name != "cpu" for name in settings):
        return list(settings)
    return devices.everything(found)


def to_open(names: Sequence[str], found: Checkup) -> list[Choice]:
    """Those of the devices that can be opened to know more: what opens is there, whatever else is known against it."""
    if causes.of_package(found.cuda, "cuda-python"):
        return []
    choices = [devices.choose(name, found) for name in names if name != "cpu"]
    return [choice for choice in choices if choice.given]


def judge(names: Sequence[str], found: Checkup, opened: Mapping[str, Opened]) -> list[Verdict]:
    """A verdict for each device and backend. `opened`: by name, those of `to_open`."""
    verdicts = []
    for name in names:
        verdicts += [_cpu(found)] if name == "cpu" else _gpu(name, found, opened.get(name))
    if all(name == "cpu" for name in names):
        # Nobody asked; whoever looks for a GPU learns in one line why there is none.
        cause = causes.of_machine(found) or Cause("GPUs were not asked for", "penstock doctor --device cuda:0")
        verdicts.append(_verdict("cuda", ANY, cause, asked=False))
    return verdicts


def tried(verdict: Verdict, failed: str | None) -> Verdict:
    """The verdict after a trial. `failed`: why it failed, empty if it did not; None: there was none."""
    return msgspec.structs.replace(
        verdict, tried=failed is not None, problem=f"its trial failed: {failed}" * bool(failed)
    )


def good(verdicts: Sequence[Verdict]) -> bool:
    """Whether every device that was asked for can run at least one backend."""
    asked = {each.device for each in verdicts if each.asked}
    return asked <= {each.device for each in verdicts if each.good}


def _verdict(device: str, backend: str, cause: Cause | None, *, label: str = "", asked: bool = True) -> Verdict:
    problem, cure = cause or ("", "")
    return Verdict(device=device, backend=backend, label=label, problem=problem, cure=cure, asked=asked)


def _cpu(found: Checkup) -> Verdict:
    runtime = causes.of_package(found.onnxruntime, "onnxruntime", causes.INSTALL_CPU)
    cause = runtime or causes.of_package(found.onnx, "onnx", causes.INSTALL_CPU)
    return _verdict("cpu", "onnxruntime", cause, label=f"{found.host.core_count} cores")


def _gpu(name: str, found: Checkup, opened: Opened | None) -> list[Verdict]:
    """One verdict for both backends while they lack the same thing, else one each."""
    choice = devices.choose(name, found)
    cause = choice.cause
    if opened is None:
        cause = cause or causes.of_machine(found) or causes.of_package(found.cuda, "cuda-python")
    elif opened.problem:
        cause = causes.of_machine(found) or causes.of_card(found, choice.gpu, opened)
    if cause or opened is None:
        assert cause, "what was not opened has a cause"
        return [_verdict(name, ANY, cause, label=choice.gpu.name if choice.gpu else "")]
    by_backend = {
        "onnxruntime": causes.of_onnxruntime(found, choice.gpu),
        "tensorrt": causes.of_tensorrt(found, choice.gpu, opened),
    }
    return [_verdict(name, backend, cause, label=opened.label) for backend, cause in by_backend.items()]


def remarks(names: Sequence[str], found: Checkup) -> list[Remark]:
    """What stops nothing and is worth knowing; of GPUs only those that `names` are on."""
    remarks = []
    if causes.both_installed(found):
        text = "onnxruntime and onnxruntime-gpu are both installed; whichever came last wrote over the other's files"
        remarks.append(Remark(text=text, cure=causes.REINSTALL))
    chosen = [devices.choose(name, found) for name in names if name != "cpu"]
    gpus = {choice.gpu.index: choice.gpu for choice in chosen if choice.gpu}
    if found.driver.nodes and not found.nvml.version:
        text = "nvidia-ml-py is not installed: the memory of GPUs is not measured, and nothing proves that it came back"
        remarks.append(Remark(text=text, cure=INSTALL))
    for gpu in gpus.values():
        if gpu.persistence is False:
            text = f"{gpu.name}: persistence mode is off; each first start waits until the driver has woken the GPU"
            remarks.append(Remark(text=text, cure="sudo systemctl enable --now nvidia-persistenced"))
        if gpu.compute_mode == causes.EXCLUSIVE:
            text = f"{gpu.name} takes one process: models are replaced only after the old worker has gone"
            remarks.append(Remark(text=text, cure=f"sudo nvidia-smi -i {gpu.index} -c DEFAULT"))
        for who in gpu.occupants:
            size = "" if who.memory_size is None else f" and {who.memory_size / MIB:,.0f} MiB"
            remarks.append(Remark(text=f"{gpu.name}: {who.name or 'a process'} (pid {who.pid}) has a context{size}"))
    if gpus and found.tensorrt.version and not found.engines.path:
        text = "this user has no home folder to keep engines in: every start builds them again"
        remarks.append(Remark(text=text, cure="set engine_dir"))
    return remarks
