"""Everything about a card in one go: facts, speed, right answers, the whole gateway, and kills.

Each part runs in a process of its own and says what it found as it goes, so that one that fails, crashes or takes too
long leaves the others. A short table comes last, then `figure NAME VALUE UNIT` lines; everything in full goes to
bench/out/gpu.json, each part's log to bench/out/gpu/. What could not be measured is named, never estimated.

    facts      registered shared memory, the ways of a batch's bytes, copies on the card, top-k, recorded graphs
    backends   images/s by batch size: the engine alone, a worker alone; ten single runs against a batch of ten
    answers    CPU, ONNX Runtime on CUDA and TensorRT on real photos
    gateway    the whole gateway with tensor requests and with JPEGs
    tail       p99/p50 at nine tenths of the largest rate
    kill       memory and service around SIGKILL; a card without memory

Exits with 0, with 1 when something failed, with 3 when there is no card (and prints no figures).

    python bench/gpu.py [PART ...] [--quick | --small] [--minutes M]
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else bench/gateway.py would hide the package `gateway`

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from typing import Any

from bench.gpu_lab import notes as written
from bench.gpu_lab.plan import PARTS, SCALES, Plan

OUT = ROOT / "bench" / "out" / "gpu"
NO_CARD = 3
MINUTES = {"full": 9.3, "quick": 3.7, "small": 5.0}
"""What a run may take by default: a little less than the 10 and the 4 minutes that it is meant for."""
LOOK_S = 60

_LOOK = """
import sys
try:
    from gpuworker.gpu.card import Card
    count = Card.count()
except ImportError as error:
    sys.exit(f"{error.name} is not installed")
except Exception as error:
    sys.exit(str(error))
if not count:
    sys.exit("CUDA sees none")
"""


def card_problem() -> str:
    """Why there is no card to measure; empty if there is one. Looked at in a process of its own, which opens none."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _LOOK], cwd=ROOT, capture_output=True, text=True, timeout=LOOK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"looking for one took over {LOOK_S} s"
    lines = child.stderr.strip().splitlines() or [f"looking for one ended with {child.returncode}"]
    return lines[-1] if child.returncode else ""


def run(parts: list[str], scale_name: str, minutes: float, folder: Path) -> list[dict[str, Any]]:
    """Every part in turn; what all of them said."""
    from bench.gpu_lab.part import spawn  # noqa: PLC0415 - whoever looks at --help needs no msgspec

    notes = written.Notes(folder / "notes.jsonl")
    end_s = time.monotonic() + minutes * 60
    limits_s = SCALES[scale_name].limits_s
    chosen = [part for part in PARTS if part in parts]
    for place, part in enumerate(chosen):
        # What the parts before did not use is divided among those that follow.
        own_s = (end_s - time.monotonic()) * limits_s[part] / sum(limits_s[later] for later in chosen[place:])
        if own_s < 1:
            notes.problem(part, "no time was left for it; give it more with --minutes, or run it alone")
            continue
        print(f"{part}: at most {own_s:.0f} s", flush=True)
        seen = len(written.read(notes.path))
        begin = time.monotonic()
        plan = Plan(
            part=part,
            scale_name=scale_name,
            folder=str(folder),
            notes=str(notes.path),
            end_s=begin + own_s,
        )
        if failure := spawn(plan, part):
            notes.problem(part, failure)
        notes.remark(f"{part} took {time.monotonic() - begin:.0f} s")
        for table in written.tables(written.read(notes.path)[seen:]):
            print(table, flush=True)
    return written.read(notes.path)


def tell(lines: list[dict[str, Any]]) -> None:
    """The short table, what failed, what was not measured, and the figures, which are last."""
    results = [[line["result"], line["seen"], line["of"]] for line in lines if "result" in line]
    if results:
        print("\n" + written.table("In short", ["what", "seen", "of that"], results))
    for title, texts in (
        ("Failed", written.problems(lines)),
        ("Remarks", [line["remark"] for line in lines if "remark" in line]),
    ):
        if texts:
            print("\n".join([f"\n{title}", *(f"  {text}" for text in texts)]))
    print()
    for line in lines:
        if "figure" in line:
            print(f"figure {line['figure']} {line['value']:.4g} {line['unit']}")
    sys.stdout.flush()


def keep(lines: list[dict[str, Any]], folder: Path, out: Path) -> Path:
    """Write everything that was said into `out`.json, and the parts' logs into the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, out)
    file = out.with_name(f"{out.name}.json")
    file.write_text(json.dumps(lines, indent=1))
    return file


def settle(folder: Path) -> None:
    """What every process that is started here finds in its environment."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {
        # Children are started in ways that leave the working directory out of the path, and this may not be installed.
        "PYTHONPATH": path,
        "PYTHONFAULTHANDLER": "1",
        # As NVML counts.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Gateways here meet no other one's sockets, locks and state.
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET"):
        os.environ.pop(name, None)
    (folder / "run").mkdir(mode=0o700)
    os.environ |= own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="in under 4 minutes: fewer models, sizes and rounds")
    parser.add_argument("--small", action="store_true", help="only to see that the script works")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the parts' logs, and what OUT.json is called")
    parser.add_argument("--minutes", type=float, help="what it may take; default: 9.3, 3.7 with --quick")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    if problem := card_problem():
        print(f"There is no card to measure: {problem}.", file=sys.stderr)
        return NO_CARD
    scale_name = "small" if arguments.small else "quick" if arguments.quick else "full"
    minutes = arguments.minutes or MINUTES[scale_name]
    with tempfile.TemporaryDirectory(prefix="penstock-gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settle(folder)
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(KeyboardInterrupt):
            lines = run(arguments.parts or list(PARTS), scale_name, minutes, folder)
        lines = lines or written.read(folder / "notes.jsonl")
        print("raw results:", keep(lines, folder, arguments.out.resolve()))
        tell(lines)
    return 1 if written.problems(lines) else 0


if __name__ == "__main__":
    sys.exit(main())
