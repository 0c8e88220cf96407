"""Where the keys of a TOML file stand: spans of text, nothing else. For valid TOML only; others have parsed it before.

A file that is rewritten key by key keeps its comments, its order and its spelling; a parser gives none of them.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_KEY = re.compile(r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')(?:[ \t]*\.[ \t]*(?=\S))?""")
_REST_OF_LINE = re.compile(r"[^\n]*\n?")
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}(?!")', re.DOTALL),
    re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)
_SCALAR = re.compile(r"[^,\]}#\r\n]*")


class Entry(NamedTuple):
    """`path`: section and key. `start`: where the key begins; [value_start, value_end): its value; `line_end`: where
    the line behind it begins. `inline`: it stands between braces.
    """

    path: Path
    start: int
    value_start: int
    value_end: int
    line_end: int
    inline: bool


class Section(NamedTuple):
    """A place for keys of `path`. `insert_at`: behind its header's line, or behind its opening brace."""

    path: Path
    insert_at: int
    inline: bool
    empty: bool


def scan(text: str) -> Iterator[Entry | Section]:
    """Everything in the file, in order."""
    at = 0
    section: Path = ()
    while (at := _end(_SPACE, text, at)) < len(text):
        if text[at] == "[":
            opening = 2 if text.startswith("[[", at) else 1
            section, at = _key(text, _end(_BLANK, text, at + opening))
            at = _end(_REST_OF_LINE, text, at)
            yield Section(section, at, inline=False, empty=False)
        else:
            begin = at
            key, at = _key(text, at)
            value_start = _end(_BLANK, text, text.index("=", at) + 1)
            inner = list(_inline(text, value_start, section + key)) if text[value_start] == "{" else []
            value_end = _value(text, value_start)
            at = _end(_REST_OF_LINE, text, value_end)
            yield Entry(section + key, begin, value_start, value_end, at, inline=False)
            yield from inner


def _inline(text: str, at: int, path: Path) -> Iterator[Entry | Section]:
    """What stands in the inline table that opens at `at`."""
    opened = at + 1
    at = _end(_SPACE, text, opened)
    yield Section(path, opened, inline=True, empty=text[at] == "}")
    while text[at] != "}":
        begin = at
        key, at = _key(text, at)
        value_start = _end(_BLANK, text, text.index("=", at) + 1)
        inner = list(_inline(text, value_start, path + key)) if text[value_start] == "{" else []
        value_end = _value(text, value_start)
        yield Entry(path + key, begin, value_start, value_end, value_end, inline=True)
        yield from inner
        at = _end(_SPACE, text, value_end)
        if text[at] == ",":
            at = _end(_SPACE, text, at + 1)


def _key(text: str, at: int) -> tuple[Path, int]:
    """A dotted key as its parts, and where it ends."""
    parts = []
    while found := _KEY.match(text, at):
        part, at = found[0], found.end()
        name = part.rstrip(" \t").removesuffix(".").rstrip(" \t")
        parts.append(next(iter(tomllib.loads(f"{name} = 0"))))
        if not part.rstrip(" \t").endswith("."):
            break
    assert parts, f"no key at {at}"
    return tuple(parts), at


def _value(text: str, at: int) -> int:
    """Where the value that begins at `at` ends."""
    if text[at] in "\"'":
        return next(found.end() for string in _STRINGS if (found := string.match(text, at)))
    if text[at] not in "[{":
        end = _end(_SCALAR, text, at)
        return at + len(text[at:end].rstrip(" \t"))
    closing = {"[": "]", "{": "}"}[text[at]]
    at = _end(_SPACE, text, at + 1)
    while text[at] != closing:
        if closing == "}":
            _, at = _key(text, at)
            at = _end(_BLANK, text, text.index("=", at) + 1)
        at = _end(_SPACE, text, _value(text, at))
        if text[at] == ",":
            at = _end(_SPACE, text, at + 1)
    return at + 1


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that matches anything ends."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
