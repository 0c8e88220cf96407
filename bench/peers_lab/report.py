"""The readings as a table, pictures and a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.peers_lab.account import Standing
    from bench.peers_lab.measuring import Found

OURS_COLOUR = "#1b7837"
OTHERS = ("#b35806", "#2166ac", "#762a83", "#c51b7d", "#4d4d4d", "#e08214", "#35978f")


def table(found: Sequence[Standing]) -> Table:
    """One line per row and peer: both sides' numbers and the margins."""
    shown = Table(title="ours | theirs; margins above 1 are in our favour", title_style="dim")
    for name in ("model", "cores", "photo", "conn.", "peer"):
        shown.add_column(name)
    for name in ("requests/s", "p50 ms", "p99 ms", "CPU µs", "PSS MiB", "CPU margin", "rate margin"):
        shown.add_column(name, justify="right")
    for one in found:
        row, ours, theirs = one.row, one.ours, one.theirs
        shown.add_row(
            *(row.model[:12], str(row.cores), row.photo, str(row.connections), one.peer),
            f"{ours.rate:,.0f} | {theirs.rate:,.0f}",
            f"{ours.p50_ms:.2f} | {theirs.p50_ms:.2f}",
            f"{ours.p99_ms:.1f} | {theirs.p99_ms:.1f}",
            f"{ours.cpu_us:.0f} | {theirs.cpu_us:.0f}",
            f"{ours.pss_mib:.0f} | {theirs.pss_mib:.0f}",
            _coloured(one.cpu_margin),
            _coloured(one.rate_margin),
        )
    return shown


def _coloured(margin: float) -> str:
    return f"[{'green' if margin > 1 else 'red'}]{margin:.2f}[/]"


def document(found: Found, standings: Sequence[Standing], setting: dict[str, Any]) -> dict[str, Any]:
    """Everything, as JSON takes it. `setting`: what was asked for, and the peers' versions."""
    return {
        **setting,
        "left_out": [one._asdict() for one in found.left_out],
        "rows": [
            {
                **one.row._asdict(),
                "peer": one.peer,
                "ours": one.ours._asdict(),
                "theirs": one.theirs._asdict(),
                "cpu_margin": one.cpu_margin,
                "rate_margin": one.rate_margin,
            }
            for one in standings
        ],
        "pairs": [
            {**pair.row._asdict(), "peer": pair.peer, "ours": pair.ours._asdict(), "theirs": pair.theirs._asdict()}
            for pair in found.pairs
        ],
    }


def draw(standings: Sequence[Standing], folder: Path) -> list[Path]:
    """A picture per model and core count: CPU, rate, p99 over connections, a column per photo. Returns their paths."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, only for pictures

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for model, cores in sorted({(one.row.model, one.row.cores) for one in standings}):
        some = [one for one in standings if (one.row.model, one.row.cores) == (model, cores)]
        photos = list(dict.fromkeys(one.row.photo for one in some))
        figure, axes = plt.subplots(
            3, len(photos), figsize=(6 * len(photos), 10), sharex=True, squeeze=False, layout="constrained"
        )
        for column, photo in enumerate(photos):
            here = [one for one in some if one.row.photo == photo]
            for axis, (field, label) in zip(
                axes[:, column],
                (("cpu_us", "CPU µs a request"), ("rate", "requests/s"), ("p99_ms", "p99, ms")),
                strict=True,
            ):
                _lines(axis, here, field)
                axis.set_ylabel(label)
            axes[0, column].set_title(f"{model}, {photo}, {cores} core{'s'[: cores > 1]}")
            axes[2, column].set_xlabel("connections")
        axes[0, 0].legend(frameon=False, fontsize=8, ncols=2)
        path = folder / f"peers_{model}_{cores}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        drawn.append(path)
    return drawn


def _lines(axis: Any, here: Sequence[Standing], field: str) -> None:
    """Ours as the median of what stood beside each peer, and a line per peer."""
    import statistics  # noqa: PLC0415 - as drawing

    places = sorted({one.row.connections for one in here})
    ours = [statistics.median(getattr(one.ours, field) for one in here if one.row.connections == at) for at in places]
    axis.plot(places, ours, "o-", color=OURS_COLOUR, linewidth=2.5, label="penstock", zorder=3)
    for number, peer in enumerate(dict.fromkeys(one.peer for one in here)):
        points = sorted((one.row.connections, getattr(one.theirs, field)) for one in here if one.peer == peer)
        axis.plot(*zip(*points, strict=True), ".-", color=OTHERS[number % len(OTHERS)], linewidth=1, label=peer)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(places, [str(place) for place in places])
