"""Model repositories: `<root>/<model>/<version>/` with model.toml, the model and labels.txt. Files in, data out.

Whatever is read is bounded in size, is a regular file, and lies inside the repository once symbolic links are
followed. Nothing is cached and nothing is written; whether the graph fits its contract is for the worker to find out.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.errors import InvalidModel
from gateway.models.spec import Contract, parse_contract

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT_FILE = "model.toml"

CONTRACT_SIZE_MAX = 1 << 20
"""Bytes of a model.toml."""

LABELS_SIZE_MAX = 4 << 20
"""Bytes of a file of labels."""

LABEL_LENGTH_MAX = 512
"""Characters of one label."""

ENTRY_COUNT_MAX = 10_000
"""Entries looked at in one folder."""

NAME_GRAMMAR = "a letter or digit, then up to 63 letters, digits, '.', '_' or '-'"
VERSION_GRAMMAR = "a whole number over 0 without leading zeros, e.g. 1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MODEL_FILES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("model.onnx",),
    "tensorrt": ("model.plan", "model.onnx"),
    "fake": (),
}


Signature = tuple[tuple[str, int, int], ...]
"""(path, size in bytes, mtime in ns) of every file of a version, ascending: other files, or the same ones written to,
have another one."""


class ModelVersion(msgspec.Struct, frozen=True):
    """One servable version: where its files are, what it promises, and its class names in index order (or none)."""

    name: str
    version: int
    directory: Path
    contract: Contract
    labels: tuple[str, ...]


def is_name(name: str) -> bool:
    """Whether `name` is NAME_GRAMMAR."""
    return _NAME.fullmatch(name) is not None


def is_version(name: str) -> bool:
    """Whether `name` is VERSION_GRAMMAR."""
    return _VERSION.fullmatch(name) is not None


def scan(root: Path, versions: Literal["latest", "all"] = "latest") -> list[ModelVersion]:
    """Every model of a repository, by name, then version; "latest": only the largest version of each.

    Hidden folders and stray files are skipped.

    Raises:
        InvalidModel: no such folder, no model in it, or a model that cannot be served; the text says what to change.
    """
    found: list[ModelVersion] = []
    for model in _folders(root, root):
        if not is_name(model.name):
            raise InvalidModel(f"{model}: not a model's name; rename the folder to {NAME_GRAMMAR}.")
        numbers = []
        for folder in _folders(model, root):
            if not is_version(folder.name):
                raise InvalidModel(f"{folder}: not a version; rename the folder to {VERSION_GRAMMAR}.")
            numbers.append(int(folder.name))
        if not numbers:
            raise InvalidModel(f"{model}: holds no version; put {CONTRACT_FILE} and its model into {model.name}/1/.")
        wanted = sorted(numbers) if versions == "all" else [max(numbers)]
        found += [_read(model / str(number), root) for number in wanted]
    if not found:
        raise InvalidModel(f"{root}: holds no model; a repository is <model>/<version>/{CONTRACT_FILE}.")
    return sorted(found, key=lambda model: (model.name, model.version))


def read_version(directory: Path) -> ModelVersion:
    """One version's folder, `<root>/<model>/<version>`, checked as `scan` would. Raises InvalidModel."""
    # Made absolute without following links: the names are those that the server would see.
    folder = Path(os.path.abspath(directory))  # noqa: PTH100  Path.absolute leaves ".." in
    if not is_name(folder.parent.name):
        raise InvalidModel(f"{folder}: the folder above is the model's name; rename it to {NAME_GRAMMAR}.")
    if not is_version(folder.name):
        raise InvalidModel(f"{folder}: the folder is the model's version; rename it to {VERSION_GRAMMAR}.")
    return _read(folder, folder.parent.parent)


def list_versions(root: Path) -> dict[str, list[int]]:
    """Names and versions of a repository by its folders alone, ascending; nothing in them is read.

    What has no model's or version's name is skipped: somebody may be writing there. Raises InvalidModel without a root.
    """
    found = {}
    for model in _entries(root):
        if is_name(model.name) and model.is_dir():
            try:
                folders = [folder for folder in _entries(model) if is_version(folder.name) and folder.is_dir()]
            except InvalidModel:
                continue  # gone meanwhile, or not for us to read
            found[model.name] = sorted(int(folder.name) for folder in folders)
    return found


def sign(directory: Path) -> Signature | None:
    """The signature of a version's folder; None when it, or a file in it, has gone or cannot be looked at."""
    found: list[tuple[str, int, int]] = []
    waiting = [(directory, "")]
    try:
        while waiting:
            folder, prefix = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{prefix}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((folder / entry.name, f"{path}/"))
                    else:
                        about = entry.stat()
                        found.append((path, about.st_size, about.st_mtime_ns))
                    if len(found) + len(waiting) > ENTRY_COUNT_MAX:
                        return None
    except OSError:
        return None
    return tuple(sorted(found))


def describe(contract: Contract) -> dict[str, Any]:
    """The effective contract, defaults included, as plain data in the shape of model.toml."""
    described: dict[str, Any] = msgspec.to_builtins(contract)
    if contract.fake is None:
        del described["fake"]
    return described


def contract_toml(contract: Contract) -> str:
    """The effective contract as a model.toml, which reads back as the same contract."""
    described = describe(contract)
    sections = {"": {key: value for key, value in described.items() if not isinstance(value, dict)}}
    sections |= {key: value for key, value in described.items() if isinstance(value, dict)}
    # Strings, numbers and lists of JSON are TOML's too, once DEL is escaped. TOML has no null: such a key is left out.
    return "\n".join(
        (f"[{title}]\n" if title else "")
        + "".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
            for key, value in section.items()
            if value is not None
        )
        for title, section in sections.items()
    )


def _read(directory: Path, root: Path) -> ModelVersion:
    """One version whose names are known to fit. Raises InvalidModel."""
    for entry in _entries(directory):
        _inside(entry, root)
    source = _bytes(directory / CONTRACT_FILE, root, CONTRACT_SIZE_MAX)
    if source is None:
        raise InvalidModel(f"{directory}: {CONTRACT_FILE} is missing; it says what the model takes and gives.")
    try:
        contract = parse_contract(source.decode())
    except UnicodeDecodeError:
        raise InvalidModel(f"{directory}: {CONTRACT_FILE} is not UTF-8.") from None
    except InvalidModel as error:
        raise InvalidModel(f"{directory}: {error}") from None
    files = _MODEL_FILES[contract.backend]
    if files and not any(_is_file(directory / name, root) for name in files):
        raise InvalidModel(f"{directory}: backend = '{contract.backend}' needs {' or '.join(files)}; put it there.")
    return ModelVersion(
        directory.parent.name, int(directory.name), directory, contract, _labels(directory, root, contract)
    )


def _labels(directory: Path, root: Path, contract: Contract) -> tuple[str, ...]:
    """Class names in index order; none where the default file is absent or the task has none. Raises InvalidModel."""
    if contract.output.task != "classification":
        return ()
    name = contract.output.labels
    if not is_name(name):
        raise InvalidModel(f"{directory}: output.labels must be the name of a file beside {CONTRACT_FILE}.")
    source = _bytes(directory / name, root, LABELS_SIZE_MAX)
    if source is None:
        if name == type(contract.output)(task="classification").labels:
            return ()
        raise InvalidModel(f"{directory}: output.labels names '{name}', which is missing; add it or remove the key.")
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidModel(f"{directory}: {name} is not UTF-8.") from None
    # By line feed alone: str.splitlines would also split at characters that a label may hold.
    labels = [line.removesuffix("\r").strip() for line in text.removesuffix("\n").split("\n")]
    for index, label in enumerate(labels):
        if not label or len(label) > LABEL_LENGTH_MAX:
            wrong = f"longer than {LABEL_LENGTH_MAX} characters" if label else "empty"
            raise InvalidModel(f"{directory}: line {index + 1} of {name} is {wrong}; line n names class n - 1.")
    return tuple(labels)


def _folders(parent: Path, root: Path) -> Iterator[Path]:
    """The folders in `parent` that are not hidden. Raises InvalidModel."""
    for entry in _entries(parent):
        if not entry.name.startswith(".") and entry.is_dir():
            _inside(entry, root)
            yield entry


def _entries(folder: Path) -> list[Path]:
    """Everything in `folder`, sorted. Raises InvalidModel."""
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        raise InvalidModel(f"{folder}: no such folder.") from None
    except NotADirectoryError:
        raise InvalidModel(f"{folder}: not a folder.") from None
    except OSError as error:
        raise InvalidModel(f"{folder}: cannot be read ({error.strerror}).") from None
    if len(entries) > ENTRY_COUNT_MAX:
        raise InvalidModel(f"{folder}: more than {ENTRY_COUNT_MAX} entries; is this a model repository?")
    return entries


def _inside(path: Path, root: Path) -> Path:
    """Where `path` really is. Raises InvalidModel when that is outside `root`, or when a link goes in circles."""
    try:
        real = path.resolve()
        if real.is_relative_to(root.resolve()):
            return real
    except (OSError, RuntimeError):
        raise InvalidModel(f"{path}: a symbolic link that leads nowhere; remove it.") from None
    raise InvalidModel(f"{path}: a symbolic link out of the repository; copy the file into it instead.")


def _is_file(path: Path, root: Path) -> bool:
    """Whether `path` is a regular file inside `root`. Raises InvalidModel."""
    return _inside(path, root).is_file()


def _bytes(path: Path, root: Path, size_max: int) -> bytes | None:
    """A small regular file, or None when there is none. Raises InvalidModel."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for its writer.
        fd = os.open(_inside(path, root), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidModel(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidModel(f"{path}: not a regular file.")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(size_max + 1)
    finally:
        os.close(fd)
    if len(content) > size_max:
        raise InvalidModel(f"{path}: larger than {size_max} bytes.")
    return content
