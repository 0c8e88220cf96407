"""`--expect`: what every answer has to say. A text that stands in it, or `$.path=value` of its JSON or msgpack."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgpack
import orjson

from gateway.errors import InvalidSettings

_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]|\['([^']*)'\]")
_ABSENT = object()


class Expectation(NamedTuple):
    """`text`: as the user wrote it. `steps`: keys and indexes of a path; without one, `value` is bytes to be found."""

    text: str
    steps: tuple[str | int, ...] | None
    value: Any

    def met(self, body: bytes) -> bool:
        """Whether an answer with this body is the expected one."""
        if self.steps is None:
            return self.value in body
        found = _read(body)
        for step in self.steps:
            if isinstance(found, dict):
                found = found.get(step, _ABSENT)
            elif isinstance(found, list) and isinstance(step, int) and step < len(found):
                found = found[step]
            else:
                return False
        # JSON's true is not its 1, and Python's is.
        return bool(found == self.value and isinstance(found, bool) == isinstance(self.value, bool))


def read(text: str) -> Expectation:
    """An `--expect`. Raises InvalidSettings."""
    if not text.startswith("$"):
        if not text:
            raise InvalidSettings("--expect is empty; write a text that every answer holds, or $.path=value")
        return Expectation(text, None, text.encode())
    path, equals, wanted = text.partition("=")
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise InvalidSettings(f"--expect {text}: no path at {path[at:]!r}; write $.key[0].key=value")
        key, index, quoted = step.groups()
        steps.append(int(index) if index is not None else key or quoted)
        at = step.end()
    if not equals:
        raise InvalidSettings(f"--expect {text}: a path needs a value; write {path}=value")
    try:
        value = orjson.loads(wanted)
    except orjson.JSONDecodeError:
        value = wanted
    return Expectation(text, tuple(steps), value)


def _read(body: bytes) -> Any:
    """A body as a document, whatever it is in; _ABSENT where it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return msgpack.unpackb(body)
        except ValueError:  # msgpack's own errors are ValueErrors too
            return _ABSENT
