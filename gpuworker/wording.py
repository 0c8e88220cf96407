"""Names out of files, made fit for messages and logs."""

from __future__ import annotations

_SHOWN_MAX = 80


def shown(text: str) -> str:
    """A name out of a file, cut to what a message can bear, control characters escaped."""
    clean = text.encode("unicode_escape", "replace").decode("ascii")
    return clean if len(clean) <= _SHOWN_MAX else clean[:_SHOWN_MAX] + "..."
