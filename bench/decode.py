"""Decoding and resizing: CPU time per image and error, against libjpeg-turbo alone and against what else people use.

    python bench/decode.py            every row: 224 x 224 to 12 megapixels, JPEG, PNG, WebP
    python bench/decode.py --quick    without 4K and 12 megapixels, fewer rounds
    python bench/decode.py --table    the errors behind `gateway/decoding/scales.py`, and nothing else

OpenCV and libvips are in the extra `bench`; without it their columns are left out, and that is said. Ratios are medians
of rounds in which every way had its turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import os

# One thread for all; NumPy's BLAS and OpenCV would start more.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import contextlib
import statistics
import tempfile
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import rig
from bench.decode_lab import errors, pictures, rows, timing, ways
from gateway.decoding import pillow

console = Console(width=None if sys.stdout.isatty() else 200)

PEERS = ("Pillow", "Pillow draft", "OpenCV area", "OpenCV linear", "OpenCV reduced", "libvips")
Taken = dict[str, dict[str, list[float]]]


def timed(*, quick: bool, count: int) -> Taken:
    """µs by row and way, one value a round."""
    taken: Taken = {}
    with contextlib.ExitStack() as stack:
        plain = timing.PlainTurbo(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(plain.close)
        for row in rows.rows(quick=quick):
            found = ways.ways(row, rows.contract())
            taken[row.name] = timing.rounds(row, found, count, plain)
            console.print(f"  {row.name}: {statistics.median(taken[row.name]['ours']):,.0f} µs", style="dim")
    return taken


def show_times(taken: Taken) -> None:
    names = list(dict.fromkeys(name for found in taken.values() for name in found))
    table = Table("µs per image", *names)
    for row, found in taken.items():
        cells = (f"{statistics.median(found[name]):,.0f}" if name in found else "" for name in names)
        table.add_row(row, *cells)
    console.print(table)


def lost(taken: Taken) -> list[str]:
    """Rows on which a peer took less time than we, and by how much."""
    return [
        f"{row}: {ratio:.2f} x {peer}"
        for row, times in taken.items()
        for peer in PEERS
        if peer in times and (ratio := timing.ratio(times, "ours", peer)) > 1
    ]


def show_errors(quick: bool) -> dict[int, dict[str, errors.Error]]:  # noqa: FBT001 - as the option is
    """Errors over real photos by shorter side; beside ours, what the peers' pixels are off on one row."""
    contract = rows.contract()
    sides = [side for side in errors.SHORTER if not quick or side <= 1080]
    found = {side: errors.over_photos(contract, side) for side in sides}
    table = Table("shorter side", "mean", "worst photo", "p99, worst", "largest")
    for side, by_photo in found.items():
        of = list(by_photo.values())
        table.add_row(
            str(side),
            f"{np.mean([one.mean for one in of]):.2f}",
            f"{max(one.mean for one in of):.2f}",
            f"{max(one.p99 for one in of):.0f}",
            f"{max(one.largest for one in of):.0f}",
        )
    console.print(table)
    return found


def show_rivals() -> dict[str, dict[str, errors.Error]]:
    """Errors of every way on the rows of one photo, against the plain pipeline."""
    contract = rows.contract()
    table = Table("mean difference / largest, of 255", *("ours", *PEERS[1:]))
    found: dict[str, dict[str, errors.Error]] = {}
    for row in rows.rows(quick=True):
        if "progressive" in row.name:
            continue
        wanted = errors.plain(row.body, contract)
        made = ways.ways(row, contract)
        found[row.name] = {
            name: errors.Error.between(np.asarray(made[name]()), wanted)
            for name in ("ours", *PEERS[1:])
            if name in made
        }
        cells = (
            f"{one.mean:.2f} / {one.largest:.0f}" if (one := found[row.name].get(name)) else ""
            for name in ("ours", *PEERS[1:])
        )
        table.add_row(row.name, *cells)
    console.print(table)
    return found


def show_options(count: int) -> dict[str, tuple[float, errors.Error]]:
    """Each `resample`, widened and point-sampled: µs and error on two sizes, beside Pillow's own."""
    table = Table(
        "resample",
        *(f"{size} {what}" for size in ("500", "1080p") for what in ("µs", "Pillow µs", "mean", "p99", "largest")),
    )
    sizes = {label: rows.SIZES[label] for label in ("500", "1080p")}
    images = {label: rows.Row(label, size[:2], "JPEG", rig.jpeg(*size)) for label, size in sizes.items()}
    found = {}
    for kernel in pillow.RESAMPLING:
        for antialias in (True, False) if kernel != "nearest" else (True,):
            contract = rows.contract(resample=kernel, antialias=antialias)
            name = kernel if antialias else f"{kernel}, point-sampled"
            cells = []
            for row in images.values():
                slot = np.zeros(contract.input.shape, np.uint8)
                both = {
                    "ours": ways.ours(row, contract, slot),
                    "Pillow": ways.pillow(row, contract, slot.copy(), draft=False),
                }
                taken = timing.rounds(row, both if antialias else {"ours": both["ours"]}, count)
                error = errors.of(row.body, contract)
                ours = statistics.median(taken["ours"])
                theirs = f"{statistics.median(taken['Pillow']):,.0f}" if antialias else ""
                cells += [f"{ours:,.0f}", theirs, f"{error.mean:.2f}", f"{error.p99:.0f}", f"{error.largest:.0f}"]
                found[name] = ours, error
            table.add_row(name, *cells)
    console.print(table)
    return found


def show_table() -> None:
    """The errors behind the table of scales."""
    measured = errors.table()
    for kernel in dict.fromkeys(line[0] for line in measured):
        lines = [line for line in measured if line[0] == kernel]
        table = Table(f"{kernel} from", *lines[0][3])
        for _, divisor, ratio, off in lines:
            cells = (f"{mean:.2f} / {worst:.2f}" for mean, worst in off.values())
            table.add_row(f"1/{divisor}, {ratio:g} x", *cells)
        console.print(table)


def show_yardsticks(taken: Taken) -> None:
    """The figures of 2016 beside ours: 1080p in 30 ms, libjpeg-turbo 30 % faster than libjpeg."""
    times = taken["1080p 4:2:0"]
    ours, plain = statistics.median(times["ours"]), statistics.median(times["no SIMD 1/1"])
    full = statistics.median(times["turbo 1/1"])
    console.print(
        f"1080p: ours {ours / 1e3:.1f} ms; decoded whole {full / 1e3:.1f} ms, without SIMD {plain / 1e3:.1f} ms "
        f"({plain / full:.2f} x; the seed saw 30 ms and 1.3 x)"
    )


def figures(taken: Taken, found: dict[int, dict[str, errors.Error]], answers: errors.Answers) -> None:
    for name, row, under in (
        ("decode_500_ratio", "500 4:2:0", "turbo 1/1"),
        ("decode_1080_ratio", "1080p 4:2:0", "turbo 1/4"),
        ("decode_12mp_ratio", "12MP 4:2:0", "turbo 1/8"),
    ):
        if row in taken:
            rig.figure(name, timing.ratio(taken[row], "ours", under), "ratio")
    rig.figure("decode_500_mad", max(error.mean for error in found[375].values()), "of_255")
    rig.figure("decode_1080_mad", max(error.mean for error in found[1080].values()), "of_255")
    rig.figure("decode_top1_same", answers.same / answers.compared, "share")
    rig.figure("decode_500_probability_off", answers.probability_off[375], "probability")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no images over 3 megapixels, three rounds")
    parser.add_argument("--table", action="store_true", help="only the errors behind gateway/decoding/scales.py")
    parser.add_argument("--rounds", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.table:
        show_table()
        return
    if missing := ways.missing():
        console.print(
            f"not compared with {' and '.join(missing)}, which are not installed: {ways.INSTALL}", style="yellow"
        )
    count = arguments.rounds or (3 if arguments.quick else 7)
    taken = timed(quick=arguments.quick, count=count)
    show_times(taken)
    found = show_errors(arguments.quick)
    rivals = show_rivals()
    options = show_options(count)
    answers = errors.answers()
    console.print(
        f"EfficientNet-Lite0: {answers.same} of {answers.compared} first classes the same where plain Pillow leads "
        f"by more than {errors.LEAD_MIN}; probabilities off by at most, by shorter side, "
        + ", ".join(f"{side}: {off:.3f}" for side, off in answers.probability_off.items())
    )
    show_yardsticks(taken)
    losses = lost(taken)
    console.print("\n".join(["rows on which somebody was faster:", *losses]) if losses else "no row lost")
    document: dict[str, Any] = {"us": taken, "errors": found, "rivals": rivals, "options": options, "lost": losses}
    console.print(f"raw results: {rig.save('decode', document)}", style="dim")
    for path in pictures.draw(rig.ROOT / "bench" / "out", taken, found, options):
        console.print(f"picture: {path}", style="dim")
    rig.figure("decode_rows_lost", len(losses), "count")
    figures(taken, found, answers)


if __name__ == "__main__":
    main()
