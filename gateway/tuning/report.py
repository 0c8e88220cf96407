"""What a tuning run prints: tables, the plot, what limits the rate, and the section. Computes next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway import config
from gateway.tuning import choice, plot
from gateway.tuning.search import REFUSED_SHARE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from gateway.tuning.findings import Findings, Goal

SKIPPED_SHOWN = 5


def report(goal: Goal, findings: Findings) -> RenderableType:
    """Everything that is known, however far the run came."""
    return Group(*_parts(goal, findings))


def probe_line(goal: Goal, findings: Findings) -> str:
    """The last probe in one line, as it goes by."""
    probe = findings.probes[-1]
    return (
        f"{probe.rate:>9,.0f} images/s  p99 {probe.p99_ms:>8.1f} ms  refused {probe.refused_share:>6.1%}  "
        f"{probe.verdict(goal.deadline_ms)}"
    )


def result(goal: Goal, findings: Findings) -> Text:
    """What the model sustains, in a sentence."""
    if findings.rate is None:
        failed = [probe.rate for probe in findings.probes if not probe.meets(goal.deadline_ms)]
        met = [probe.rate for probe in findings.probes if probe.meets(goal.deadline_ms)]
        known = max((rate for rate in met if rate < min(failed, default=rate + 1)), default=0.0)
        seen = f"; {known:,.0f} images/s did once" if known else ""
        return Text(
            f"no rate was confirmed to keep {goal.deadline_ms:g} ms{seen}. "
            "Ask for a longer deadline, or give it more --minutes on a quiet machine",
            "yellow",
        )
    probe = next(probe for probe in reversed(findings.probes) if probe.confirms)
    return Text.assemble(
        (f"{findings.rate:,.0f} images/s", "bold green"),
        f" with p99 {probe.p99_ms:.1f} ms of {goal.deadline_ms:g} and {probe.refused_share:.1%} refused",
    )


def diff(lines: Iterable[str]) -> Text:
    """A unified diff in colours."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return Text("\n").join(Text(line, colours.get(line[:1], "")) for line in lines)


def _parts(goal: Goal, findings: Findings) -> Iterator[RenderableType]:
    if findings.points:
        yield _profile_table(goal, findings)
    for skipped in findings.skipped[:SKIPPED_SHOWN]:
        yield Text(f"{skipped.name} is not sent: {skipped.detail}", "yellow")
    if (left := len(findings.skipped) - SKIPPED_SHOWN) > 0:
        yield Text(f"and {left} more", "yellow")
    if decode := findings.decode:
        what = "a made-up photo of 500 x 375" if goal.images is None else f"{findings.photo_count} of your images"
        yield Text(
            f"decoding {what}: {decode.p50_ms:.2f} ms each (p99 {decode.p99_ms:.2f}), "
            f"{decode.rate:,.0f} images/s on {decode.decoder_count} decoders"
        )
    if limit := _limit(goal, findings):
        yield limit
    if findings.probes:
        yield _search_table(goal, findings)
        yield plot.drawn(findings.probes, goal.deadline_ms)


def _profile_table(goal: Goal, findings: Findings) -> Table:
    table = Table("batch size", "p50 ms", "p99 ms", "images/s", "chosen", title=f"on {goal.settings.devices[0]}")
    for size, point in sorted(findings.points.items()):
        chosen = ""
        if findings.choice and size in findings.choice.sizes:
            chosen = "best" if size == findings.choice.best_size else "yes"
        table.add_row(
            str(size),
            f"{point.p50_ns / 1e6:.2f}",
            f"{point.p99_ns / 1e6:.2f}",
            f"{size / max(point.p50_ns, 1) * 1e9:,.0f}",
            Text(chosen, "green"),
        )
    return table


def _limit(goal: Goal, findings: Findings) -> Text | None:
    """Whether the model or decoding is the limit, and what would move it."""
    if findings.choice is None or findings.decode is None:
        return None
    model, decode = findings.choice, findings.decode
    workers = len(goal.settings.devices)
    text = f"{workers} worker{'s' if workers > 1 else ''} in batches of {model.best_size}: {model.rate:,.0f} images/s"
    if not model.fits:
        return Text(
            f"{text}; once an image is decoded, {goal.deadline_ms:g} ms leave no room for a batch of one behind "
            "another: ask for a longer deadline, or measure on a quiet machine",
            "yellow",
        )
    if decode.rate >= model.rate:
        return Text(f"{text}; the model is the limit, not decoding")
    needed = choice.decoders_needed(model.rate, decode.rate / decode.decoder_count)
    spare = f", more than the {config.cores()} cores here" if needed > config.cores() else ""
    return Text(f"{text}; decoding is the limit: it would take {needed} decoders{spare}", "yellow")


def _search_table(goal: Goal, findings: Findings) -> Table:
    title = f"p99 within {goal.deadline_ms:g} ms, at most {REFUSED_SHARE_MAX:.0%} refused"
    table = Table("offered images/s", "requests", "p50 ms", "p99 ms", "refused", "verdict", title=escape(title))
    for probe in findings.probes:
        met = probe.meets(goal.deadline_ms)
        table.add_row(
            f"{probe.rate:,.0f}",
            f"{probe.due_count:,}",
            f"{probe.p50_ms:.1f}",
            f"{probe.p99_ms:.1f}",
            f"{probe.refused_share:.1%}",
            Text(probe.verdict(goal.deadline_ms), "green" if met else "red"),
        )
    return table
