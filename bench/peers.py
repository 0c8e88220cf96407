"""The same photo, decoding and model behind other servers: requests/s, latency, CPU and memory against ours.

    python bench/peers.py --install all          # a virtual environment each, under .venv/peers/; or name some
    python bench/peers.py --quick                # two peers, 2 s a reading: does it work?
    python bench/peers.py                        # everything that is installed, 3 rounds, some hours
    python bench/peers.py --peers mosec fastapi --models null --rounds 1

Every reading of a peer has one of ours beside it, taken right after or before on the same cores. A peer that is not
installed, does not start or answers otherwise than we do is named with its reason and left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import signal
from typing import TYPE_CHECKING

from rich.console import Console

from bench import rig
from bench.peers_lab import account, installing, measuring, report
from bench.peers_lab.catalogue import BY_NAME, PEERS

if TYPE_CHECKING:
    from bench.peers_lab.catalogue import Peer

NOTHING_THERE = 3
"""Exit status where what is measured is not there, as the other scripts have it."""

console = Console(width=180 if not sys.stdout.isatty() else None)


def install(names: list[str]) -> int:
    """Make environments; the exit status says whether all could be made."""
    failed = False
    for peer in PEERS if names == ["all"] else [BY_NAME[name] for name in names]:
        with console.status(f"installing {peer.name}"):
            reason = installing.install(peer)
        failed |= reason is not None
        console.print(f"{peer.name}: {reason or 'installed, ' + installing.version(peer)}", markup=False)
    return int(failed)


def chosen(arguments: argparse.Namespace) -> tuple[list[Peer], list[measuring.LeftOut]]:
    """(peers to measure, those that are not installed)."""
    wanted = [BY_NAME[name] for name in arguments.peers] if arguments.peers else list(PEERS)
    there = [peer for peer in wanted if installing.is_installed(peer)]
    missing = [
        measuring.LeftOut(peer.name, "all rows", f"not installed: python bench/peers.py --install {peer.name}")
        for peer in wanted
        if peer not in there
    ]
    return there[:2] if arguments.quick else there, missing


def plan(arguments: argparse.Namespace) -> measuring.Plan:
    """What is asked for; --quick has fewer rows and shorter ones."""
    photos = {"224x224": rig.jpeg(224, 224, 85), "500x375": rig.jpeg(500, 375, 90)}
    quick = arguments.quick
    return measuring.Plan(
        models=arguments.models,
        cores=arguments.cores,
        photos=photos,
        connections=arguments.connections or ((1, 32) if quick else (1, 8, 32, 128)),
        rounds=arguments.rounds or (1 if quick else 3),
        seconds=arguments.seconds or (2.0 if quick else 4.0),
        warmup_s=0.3 if quick else 1.0,
        plain=arguments.decoding == "pillow",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", nargs="+", metavar="PEER", choices=("all", *BY_NAME), help="and do nothing else")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=tuple(BY_NAME))
    parser.add_argument(
        "--models", nargs="+", choices=(measuring.NULL, measuring.REAL), default=[measuring.NULL, measuring.REAL]
    )
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--connections", nargs="+", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a reading")
    parser.add_argument(
        "--decoding", choices=("ours", "pillow"), default="ours", help="what the peers decode with: ours is the harder"
    )
    arguments = parser.parse_args()
    if arguments.install:
        return install(arguments.install)
    peers, missing = chosen(arguments)
    if not peers:
        console.print("no peer is installed: python bench/peers.py --install all")
        return NOTHING_THERE
    setting = {
        "decoding_of_peers": arguments.decoding,
        "versions": {peer.name: installing.version(peer) for peer in peers},
        "settings": {peer.name: peer.settings for peer in peers},
    }

    def keep(found: measuring.Found) -> Path:
        return rig.save("peers", report.document(found, account.standings(found.pairs), setting))

    # As Ctrl-C: the servers' blocks end them on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = measuring.take(peers, plan(arguments), lambda text: console.print(text, style="dim"), keep)
    found.left_out.extend(missing)
    standings = account.standings(found.pairs)
    console.print(report.table(standings))
    for one in found.left_out:
        console.print(f"left out: {one.peer}, {one.where}: {one.reason}", markup=False)
    drawn = report.draw(standings, rig.ROOT / "bench" / "out")
    print("pictures:", *drawn)
    print("raw results:", keep(found))
    for model, suffix in ((measuring.NULL, ""), (measuring.REAL, "_efficientnet")):
        for name, value in account.figures(standings, model).items():
            rig.figure(name + suffix, value, "rows" if name.startswith("peer_rows") else "ratio")
    rig.figure("peers_measured", len({one.peer for one in standings}), "peers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
