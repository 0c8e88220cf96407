"""What a body says, as data: where its images lie, and the three parameters. Parses no body; every reader uses it.

The same parameters may stand in the URL and in the body. Naming one in both places is fine as long as both say the
same; two different values are refused rather than ranked, because whoever sent them believes in one of the two.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from gateway.errors import BadRequest, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shm.wire import Encoding

TOP_K_MAX = 1000
"""Classes; a model's contract may allow fewer."""

DEADLINE_MS_MAX = 600_000
"""Milliseconds; a model's contract may allow less."""

PARAMETERS = ("top_k", "deadline_ms", "priority")
"""Every parameter that a request may carry, in the URL or in the body."""

TEXT_SIZE_MAX = 32
"""Bytes of a parameter written as text; longer ones are refused unread."""

Priority = Literal["realtime", "batch"]

_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)


class Part(NamedTuple):
    """One encoded image: `size` bytes at `offset` of the body. A size of 0 is an image that cannot be decoded."""

    offset: int
    size: int
    encoding: Encoding


class TensorPart(NamedTuple):
    """Pixels that need no decoding: `size` bytes at `offset` of the body, uint8[*shape], C-order."""

    offset: int
    size: int
    shape: tuple[int, ...]


class Parameters(NamedTuple):
    """What a request may ask for beside its images; None where it does not say."""

    top_k: int | None = None
    deadline_ms: float | None = None
    priority: Priority | None = None


class Query(msgspec.Struct):
    """One body, read. Either `parts` holds at least one image, or `tensor` holds pixels.

    `many`: the client sent a list, so it gets a list ("predictions") even when there is one image in it.
    """

    parts: list[Part]
    tensor: TensorPart | None = None
    many: bool = False
    top_k: int | None = None
    deadline_ms: float | None = None
    priority: Priority | None = None

    def settle(self, url: Parameters) -> None:
        """Take the URL's parameters over into this query. Raises BadRequest where body and URL disagree."""
        for name, value in zip(PARAMETERS, url, strict=True):
            own = getattr(self, name)
            if own is None:
                setattr(self, name, value)
            elif value is not None and value != own:
                raise BadRequest(f"{name} is {own} in the body and {value} in the URL; send it once.")


def read_parameters(query: Mapping[str, str]) -> Parameters:
    """The parameters of a URL's query. Raises BadRequest, which names the nearest known parameter."""
    found = {}
    for name, text in query.items():
        if name not in PARAMETERS:
            raise BadRequest(f"Unknown parameter {quote(name)}; {nearest(name, PARAMETERS)}")
        if name in found:
            raise BadRequest(f"{name} stands twice in the URL; send it once.")
        found[name] = parameter_from_text(name, text)
    return parameters(found)


def parameters(found: Mapping[str, object]) -> Parameters:
    """Check typed values (from JSON, msgpack or text); None means not given. Raises BadRequest with the bound."""
    top_k: Any = found.get("top_k")
    deadline_ms: Any = found.get("deadline_ms")
    priority: Any = found.get("priority")
    # bool is an int to isinstance, and `true` classes are nothing anyone meant.
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= TOP_K_MAX):
        raise BadRequest(f"top_k must be a whole number from 1 to {TOP_K_MAX}.")
    if deadline_ms is not None:
        number = float(deadline_ms) if type(deadline_ms) in (int, float) else math.nan
        if not 0 < number <= DEADLINE_MS_MAX:
            raise BadRequest(f"deadline_ms must be a number over 0 and up to {DEADLINE_MS_MAX}, in milliseconds.")
        deadline_ms = number
    if priority is not None and priority not in ("realtime", "batch"):
        raise BadRequest("priority must be 'realtime' or 'batch'.")
    return Parameters(top_k, deadline_ms, priority)


def parameter_from_text(name: str, text: str) -> object:
    """A parameter written as text, as the type it stands for. Text that does not parse is left to `parameters`."""
    if name == "top_k" and _WHOLE.fullmatch(text):
        return int(text)
    if name == "deadline_ms" and _DECIMAL.fullmatch(text):
        return float(text)
    return text


def check_tensor(tensor: TensorPart, wanted: tuple[int, int, int]) -> int:
    """How many images `tensor` holds for a model that takes uint8[h, w, c] = `wanted`.

    Raises:
        BadRequest: another shape; both sides are named.
    """
    if tensor.shape == wanted:
        return 1
    if tensor.shape[1:] == wanted:
        return tensor.shape[0]
    got, one = list(tensor.shape), list(wanted)
    raise BadRequest(f"The tensor is uint8{got}; this model takes uint8{one}, or uint8{['n', *wanted]} for several.")


def check_count(count: int, images_max: int) -> None:
    """Refuse no images, and more than `images_max`. Raises BadRequest, PayloadTooLarge."""
    if count == 0:
        raise BadRequest("There is no image in the request; send at least one.")
    if count > images_max:
        raise PayloadTooLarge(f"More than {images_max} images in one request; send them in several requests.")


def quote(name: str) -> str:
    """A client's own word, made fit for a sentence: printable ASCII, 40 characters at most."""
    return ascii(name[:40])


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that ends a sentence: the known name most like `name`, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name[:40], names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}."
