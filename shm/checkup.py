"""What `python -m gpuworker.doctor` finds out, as `penstock doctor` reads it: JSON; facts, no verdicts.

A `problem` is empty where there is none. Sizes are bytes.
"""

from __future__ import annotations

import msgspec


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, as this process sees it."""

    python: str
    executable: str
    platform: str
    """E.g. "Linux x86_64"."""
    kernel: str
    libc: str
    core_count: int
    """Cores that this process may use."""
    container: bool
    memory_size_max: int | None
    """The container's limit; None: none, or nobody says."""
    memlock_size_max: int | None
    """RLIMIT_MEMLOCK; None: none. The driver pins memory by itself, past this limit."""


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """NVIDIA's driver: its part in the kernel, the device files, and the libraries that come with it."""

    board_count: int
    """NVIDIA display controllers on the PCI bus; there are drivers for some of them only."""
    module: str
    """Version of the kernel module; empty: it is not loaded."""
    nodes: tuple[str, ...]
    """Device files of GPUs; empty: none in this container."""
    closed_nodes: tuple[str, ...]
    """Of these and of those that all GPUs share, the ones that this user may not open."""
    unified_memory: bool
    """Whether /dev/nvidia-uvm is there; CUDA has a setuid program make it, which not every service may call."""
    libcuda: str
    """Why libcuda.so.1 cannot be used."""
    cuda: int
    """Newest CUDA that it knows, as 1000 x major + 10 x minor; 0: unknown."""
    nvml: str
    """Why NVML cannot be asked."""
    nvml_code: int
    """nvmlReturn_t of that; 0: none."""
    version: str
    """By NVML's word; empty: unknown."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES as the operator set it."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A MIG slice."""

    uuid: str
    name: str
    memory_size: int


class Occupant(msgspec.Struct, frozen=True, kw_only=True):
    """A process that has a context on a GPU. `name`: empty where this user may not know."""

    pid: int
    name: str
    memory_size: int | None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU. None: its driver does not say."""

    index: int
    """By NVML's count, which is nvidia-smi's; 'cuda:N' counts along the bus."""
    uuid: str
    name: str
    memory_size: int
    memory_used_size: int
    capability: tuple[int, int]
    persistence: bool | None
    compute_mode: int
    """0: default, 2: prohibited, 3: one process."""
    mig: bool
    slices: tuple[Slice, ...]
    occupants: tuple[Occupant, ...]


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A library, and whether it imports. `installed`: version by distribution; of ONNX Runtime there should be one."""

    installed: dict[str, str]
    version: str
    """Its own word; empty: it does not import."""
    problem: str
    """Why it does not, in its own words; empty also where it is not installed at all."""


class Runtime(Package, frozen=True, kw_only=True):
    """ONNX Runtime."""

    cuda: str
    """CUDA that it was built for; empty: a build for the CPU."""
    providers: tuple[str, ...]
    provider: str
    """Why its CUDA provider does not load, and what to do about it; empty also where it has none."""


class TensorRt(Package, frozen=True, kw_only=True):
    """TensorRT."""

    builder: bool
    """Whether engines can be built: the lean and dispatch runtimes only run them."""
    parser: bool
    """Whether it reads ONNX."""


class EngineFolder(msgspec.Struct, frozen=True, kw_only=True):
    """Where built engines are kept. `problem`: why it is refused; what to do."""

    path: str
    """Empty: nowhere."""
    size: int
    """Of the files in it."""
    file_count: int
    free_size: int
    """Of the file system."""
    problem: str


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """One machine."""

    host: Host
    driver: Driver
    gpus: tuple[Gpu, ...]
    """In the order of the bus."""
    onnxruntime: Runtime
    onnx: Package
    cuda: Package
    tensorrt: TensorRt
    nvml: Package
    engines: EngineFolder


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What opening one GPU in a process of its own gave."""

    device: str
    label: str
    """For people; empty: it could not be opened."""
    problem: str
    tensorrt: str
    """Why TensorRT does not start on it; empty also where that was not tried."""
