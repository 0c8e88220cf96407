"""Pictures of a decode run: cost by way and image, error by size, and what each `resample` costs and gives."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.decode_lab.errors import Error

COLOURS = {
    "ours": "#1b7837",
    "turbo 1/1": "#9e9e9e",
    "Pillow": "#2166ac",
    "Pillow draft": "#67a9cf",
    "OpenCV area": "#b35806",
    "OpenCV linear": "#f1a340",
    "OpenCV reduced": "#fee0b6",
    "libvips": "#762a83",
}
"""The ways that are drawn, in this order."""


def draw(
    folder: Path,
    taken: Mapping[str, Mapping[str, list[float]]],
    by_size: Mapping[int, Mapping[str, Error]],
    options: Mapping[str, tuple[float, Error]],
) -> list[Path]:
    """Write the pictures into `folder`; their paths.

    taken: µs by row and way. by_size: error by photo, by shorter side. options: (µs, error) by `resample` option.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, only for pictures

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    return [_costs(folder, taken, plt), _errors(folder, by_size, plt), _options(folder, options, plt)]


def _costs(folder: Path, taken: Mapping[str, Mapping[str, list[float]]], plt: Any) -> Path:
    """One group a row: µs of each way over ours, so that what is above 1 lost to us."""
    names = list(taken)
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(names) + 1.6), layout="constrained")
    for place, name in enumerate(names):
        ours = statistics.median(taken[name]["ours"])
        for way, colour in COLOURS.items():
            if way in taken[name]:
                ratio = statistics.median(taken[name][way]) / ours
                axes.plot(ratio, place, "D" if way == "ours" else "o", color=colour, markersize=6)
    for way, colour in COLOURS.items():
        axes.plot([], [], "D" if way == "ours" else "o", color=colour, label=way)
    axes.axvline(1.0, color=COLOURS["ours"], linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    labels = [f"{name}\n{statistics.median(taken[name]['ours']):,.0f} µs" for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "CPU time over ours, which is below each name (left of the line: faster than we are; turbo 1/1 only decodes)"
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, frameon=False)
    return _save(figure, folder / "decode_cost.png", plt)


def _errors(folder: Path, by_size: Mapping[int, Mapping[str, Error]], plt: Any) -> Path:
    """Mean difference of each photo over the shorter side of the source."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    sides = sorted(by_size)
    for name in next(iter(by_size.values())):
        axes.plot(sides, [by_size[side][name].mean for side in sides], marker=".", linewidth=1, label=name)
    means = [float(np.mean([error.mean for error in by_size[side].values()])) for side in sides]
    axes.plot(sides, means, color="black", linewidth=2, label="mean")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [str(side) for side in sides], rotation=60, fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("shorter side of the JPEG, pixels (to 224 x 224, crop)")
    axes.set_ylabel("mean difference from plain Pillow, of 255")
    axes.legend(frameon=False, ncols=2)
    return _save(figure, folder / "decode_error.png", plt)


def _options(folder: Path, options: Mapping[str, tuple[float, Error]], plt: Any) -> Path:
    """What each `resample` option costs, and how far it is from its own definition."""
    figure, (costs, errors) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    names = list(options)
    colours = ["#b35806" if "point" in name else "#1b7837" for name in names]
    costs.barh(names, [options[name][0] / 1e3 for name in names], color=colours)
    costs.set_xlabel("ms per image, a JPEG of 1920 x 1080 to 224 x 224")
    means = [options[name][1].mean for name in names]
    errors.barh(names, means, color=colours)
    for place, mean in enumerate(means):
        errors.annotate(
            f"{mean:.2f}", (mean, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    errors.margins(x=0.12)
    errors.set_xlabel("mean difference from the kernel's definition, of 255")
    costs.invert_yaxis()
    return _save(figure, folder / "decode_options.png", plt)


def _save(figure: Any, path: Path, plt: Any) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
