"""What an operator wants of each model, and the file in which that outlives the gateway.

The file is JSON, replaced as a whole: a reader, and a gateway after a power cut, sees the old one or the new one.
Models without an entry follow the repository and the settings. No state besides the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct, field

from gateway.errors import InvalidSettings
from gateway.models.repository import is_name

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1

FILE_SIZE_MAX = 4 << 20
"""Bytes of the file; larger is none of ours."""

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_STEM_LENGTH_MAX = 40

Version = Annotated[int, Meta(ge=1, le=999_999_999)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=1_000_000)]


class Shadow(Struct, frozen=True, forbid_unknown_fields=True):
    """A version that gets a copy of the default version's requests; its answers are compared, never returned."""

    version: Version
    share: Share = 1.0
    """Which part of the requests is copied."""


class Want(Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants of one model. Whether its parts fit together is for `routes` to say."""

    versions: tuple[Version, ...] | None = None
    """None: as `settings.versions` says; (): unloaded on purpose."""
    default: Version | None = None
    """The version of requests that name none; None: the largest that is served."""
    aliases: dict[str, Version] = field(default_factory=dict)
    """Names that stand for a version in a path."""
    weights: dict[Version, Weight] = field(default_factory=dict)
    """Canary: requests that name no version are divided so; empty: all go to the default."""
    shadow: Shadow | None = None


class Desired(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file: wants by the name of the model."""

    format: int = FORMAT
    models: dict[str, Want] = field(default_factory=dict)


class Unreadable(InvalidSettings):
    """Nobody knows what was kept."""


class Store:
    """The file of one gateway: of one repository, in one folder of state."""

    def __init__(self, folder: Path, repository: Path) -> None:
        real = str(repository.resolve())
        stem = _NO_NAME.sub("-", repository.resolve().name)[:_STEM_LENGTH_MAX].strip("-") or "models"
        # Two repositories of one name are two files; one that moved begins anew.
        self.path = folder / f"desired-{stem}-{hashlib.sha256(real.encode()).hexdigest()[:12]}.json"

    def load(self) -> Desired:
        """What was kept; nothing wanted where there is no file.

        Raises:
            Unreadable: the file cannot be read.
            InvalidSettings: it does not parse; the text names it and says what to do.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(FILE_SIZE_MAX + 1)
        except FileNotFoundError:
            return Desired()
        except OSError as error:
            raise Unreadable(f"{self.path}: cannot be read ({error.strerror}); mend that, or set state_dir.") from None
        try:
            if len(content) > FILE_SIZE_MAX:
                raise ValueError(f"it is larger than {FILE_SIZE_MAX} bytes")
            found = msgspec.json.decode(content, type=Desired)
            if found.format != FORMAT:
                raise ValueError(f"its format is {found.format}, this gateway reads {FORMAT}")
            for name in found.models:
                if not is_name(name):
                    raise ValueError(f"{ascii(name)[:80]} is no model's name")
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidSettings(
                f"{self.path}: not a desired state ({error}); mend it, or remove it to follow the repository alone."
            ) from None
        return found

    def save(self, desired: Desired) -> None:
        """Replace the file. Raises OSError, with the old file as it was."""
        self.path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        content = msgspec.json.format(msgspec.json.encode(desired), indent=2) + b"\n"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        # The new name itself is on disk only once its folder is.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
