"""The edge to the codecs: whatever a library raises leaves here as one of our refusals, in our own words."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gateway.errors import Refusal, UndecodableImage

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT_OF_MEMORY = "The image needs more memory to decode than one image may have."


@contextlib.contextmanager
def codec(name: str) -> Iterator[None]:
    """Run library code on hostile bytes of the format `name`.

    Raises UndecodableImage for everything but our own refusals. The library's text is dropped on purpose: Pillow's
    has held heap addresses (vLLM, CVE-2026-22778).
    """
    try:
        yield
    except Refusal:
        raise
    except MemoryError:
        raise UndecodableImage(OUT_OF_MEMORY) from None
    except Exception:  # noqa: BLE001 - codecs raise OSError, ValueError, SystemError, struct.error, and what comes next
        raise UndecodableImage(f"The {name} image is damaged or cut short.") from None
