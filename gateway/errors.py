"""The tree of refusals: every answer that is not a result, each with a stable `code`. There is no HTTP in here.

`detail` is written for the client and says what to do. It never holds the text of a library, a path, a pid or an
address.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Refusal(Exception):
    """Base of the tree. `retry_after_s`: whole seconds after which the same request may succeed, or None.

    `extra`: members to add to the answer, as plain data.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.extra: dict[str, Any] = {}


class BadRequest(Refusal):
    """The request is malformed, or a parameter is out of its bounds."""

    code = "bad_request"


class Unauthorized(Refusal):
    """A credential is missing or wrong."""

    code = "unauthorized"


class Forbidden(Refusal):
    """Who asks may not, whatever they know: a page in a browser, say."""

    code = "forbidden"


class NotFound(Refusal):
    """No such path."""

    code = "not_found"


class UnknownModel(Refusal):
    """No model, or no version of it, by that name."""

    code = "unknown_model"


class MethodNotAllowed(Refusal):
    """The path exists, the method does not. `allow`: the methods that do."""

    code = "method_not_allowed"

    def __init__(self, detail: str, *, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow


class BodyTimeout(Refusal):
    """The client sent its body too slowly."""

    code = "body_timeout"


class PayloadTooLarge(Refusal):
    """Too many bytes, too many images, or more pixels than the model takes."""

    code = "payload_too_large"


class UnsupportedMediaType(Refusal):
    """The body, or an image in it, is of a kind that is not read here."""

    code = "unsupported_media_type"


class UndecodableImage(Refusal):
    """The bytes claim to be an image and are not, or cost more to decode than is allowed."""

    code = "undecodable_image"


class RateLimited(Refusal):
    """The client is over its rate."""

    code = "rate_limited"


class InferenceFailed(Refusal):
    """The engine reported an error for this image."""

    code = "inference_failed"


class Poisoned(Refusal):
    """The image crashes workers, or hangs them."""

    code = "poisoned"


class WorkerLost(Refusal):
    """The process that held the image died, and so did the next one."""

    code = "worker_lost"


class Overloaded(Refusal):
    """A bound is reached: the queue, the memory for bodies, or the connections."""

    code = "overloaded"


class Draining(Refusal):
    """The server is going down and takes nothing new."""

    code = "draining"


class ModelNotReady(Refusal):
    """The model is known and not serving (yet)."""

    code = "model_not_ready"


class OperationFailed(Refusal):
    """A change that an operator asked for failed, and everything is as it was; the operation says why."""

    code = "operation_failed"


class DeadlineExceeded(Refusal):
    """The answer cannot be, or was not, there in time."""

    code = "deadline_exceeded"


class VersionNotSupported(Refusal):
    """An HTTP version other than 1.0 and 1.1."""

    code = "http_version_not_supported"


class InsufficientMemory(Refusal):
    """A model needs more memory than its device has for it."""

    code = "insufficient_memory"


class LoadFailed(Refusal):
    """A model could not be loaded; what was served before is served on."""

    code = "load_failed"


class MemoryNotGivenBack(Refusal):
    """A worker is gone, and somebody still holds memory that was its."""

    code = "memory_not_given_back"


class InvalidModel(Exception):
    """A model directory does not hold what its contract says. The text says what to change."""


class InvalidSettings(Exception):
    """A setting is unknown or out of its bounds. The text names the nearest known key."""
