"""The core's refusals in words, in one place. Which one is made when is decided elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors

if TYPE_CHECKING:
    from gateway.scheduling.line import Line

RETRY_S_MAX = 3600
RETRY_S, BATCH_RETRY_S, DRAIN_RETRY_S = 1, 2, 5


def draining() -> errors.Draining:
    """Nothing new is accepted."""
    return errors.Draining("the server is going down; send this to another one", retry_after_s=DRAIN_RETRY_S)


def gone_down() -> errors.Draining:
    """Accepted, and not done when the drain's time was over."""
    return errors.Draining("the server went down; send this to another one", retry_after_s=DRAIN_RETRY_S)


def loading(line: Line) -> errors.ModelNotReady:
    """Its first worker has not come up yet."""
    return errors.ModelNotReady(f"model {line.name} is not serving yet; see /readyz", retry_after_s=RETRY_S)


def failing(line: Line, wait_ns: int) -> errors.ModelNotReady:
    """Its workers keep dying; the next probe may help."""
    return errors.ModelNotReady(
        f"the workers of model {line.name} keep dying; see /readyz",
        retry_after_s=min(RETRY_S_MAX, max(RETRY_S, -(-wait_ns // 1_000_000_000))),
    )


def not_served(line: Line) -> errors.ModelNotReady:
    """Trying again is no use."""
    return errors.ModelNotReady(
        f"model {line.name} was refused by its worker, or its processes keep dying; see /readyz"
    )


def too_late() -> errors.DeadlineExceeded:
    """The deadline was over before anything was done."""
    return errors.DeadlineExceeded("the deadline passed before the request was read; allow more time")


def late() -> errors.DeadlineExceeded:
    """The deadline is over, or nothing can meet it any more."""
    return errors.DeadlineExceeded("the answer was not ready before the request's deadline")


def impossible(line: Line, needed_ns: int) -> errors.DeadlineExceeded:
    """Not even an idle server could do it in time."""
    return errors.DeadlineExceeded(
        f"the deadline is too near: one image of model {line.name} takes about {needed_ns / 1e6:.0f} ms here when "
        "nothing else is to be done; allow more"
    )


def full(line: Line) -> errors.Overloaded:
    """The queue is as long as it may get."""
    waiting = f"{len(line.dues)} images wait for model {line.name}, which takes {line.queue_max}"
    return errors.Overloaded(f"{waiting}; try again shortly", retry_after_s=RETRY_S)


def no_time(line: Line, lateness_ns: int) -> errors.Overloaded:
    """What was promised to others leaves no room before the deadline."""
    return errors.Overloaded(
        f"model {line.name} is busy: an answer before the deadline cannot be promised now; try again later, or allow "
        "more time",
        retry_after_s=min(RETRY_S_MAX, max(RETRY_S, -(-lateness_ns // 1_000_000_000))),
    )


def over_share(line: Line) -> errors.Overloaded:
    """Other models want the workers too."""
    return errors.Overloaded(
        f"model {line.name} has its share of the workers, and other models are busy; try again shortly",
        retry_after_s=RETRY_S,
    )


def real_time_first(line: Line) -> errors.Overloaded:
    """There is not even room for all of the real-time class."""
    return errors.Overloaded(
        f"model {line.name} has no room for the batch class while real-time requests are refused; try again later",
        retry_after_s=BATCH_RETRY_S,
    )


def batch_full(line: Line, work_ns: int) -> errors.Overloaded:
    """Enough of the batch class waits already."""
    return errors.Overloaded(
        f"{line.batch_count} images of the batch class wait for model {line.name} already; try again later",
        retry_after_s=max(BATCH_RETRY_S, -(-work_ns // 1_000_000_000)),
    )


def never_fits(line: Line, image_count: int) -> errors.PayloadTooLarge:
    """More images at once than the queue takes in all."""
    return errors.PayloadTooLarge(
        f"{image_count} images in one request; the queue of model {line.name} takes {line.queue_max} in all"
    )


def no_memory() -> errors.Overloaded:
    """The byte budget of bodies is used up."""
    return errors.Overloaded("the memory for request bodies is full; try again shortly", retry_after_s=RETRY_S)


def undecodable() -> errors.UndecodableImage:
    """Decoders died of it."""
    return errors.UndecodableImage("decoding this image crashed, or cost more than is allowed")


def failed() -> errors.InferenceFailed:
    """The engine said no to this image."""
    return errors.InferenceFailed("the model failed on this image")


def lost() -> errors.WorkerLost:
    """Worker after worker was killed under it."""
    return errors.WorkerLost("the workers that ran this image kept being killed; try again later")


def not_again() -> errors.WorkerLost:
    """A worker died of an image that is worth no second one."""
    return errors.WorkerLost("a worker died while it ran this image, which is not run again")


def poisoned() -> errors.Poisoned:
    """Two workers crashed or hung on it."""
    return errors.Poisoned("this image crashes the model; it is refused for ten minutes")


def no_device_memory() -> errors.InferenceFailed:
    """Not even the smallest batch fits."""
    return errors.InferenceFailed("the device has not enough memory to run this image")
