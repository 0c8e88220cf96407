"""A virtual environment per peer, made by one command, and what kept it from being made."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from bench.peers_lab.catalogue import SHARED

if TYPE_CHECKING:
    from bench.peers_lab.catalogue import Peer

INSTALL_TIMEOUT_S = 900.0
_STAMP = "installed"


def is_installed(peer: Peer) -> bool:
    """Whether its environment was made whole, and of what the catalogue asks for now."""
    stamp = peer.venv / _STAMP
    return peer.script is None or (stamp.is_file() and stamp.read_text() == _wanted(peer))


def install(peer: Peer) -> str | None:
    """Make its environment, or bring it up to date. Returns why it could not be made; None: it is there."""
    if is_installed(peer):
        return None
    peer.venv.parent.mkdir(parents=True, exist_ok=True)
    stamp = peer.venv / _STAMP
    stamp.unlink(missing_ok=True)
    steps = (
        [sys.executable, "-m", "venv", str(peer.venv)],
        [peer.python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements, *SHARED],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"installing took more than {INSTALL_TIMEOUT_S:.0f} s"
        if done.returncode:
            return "installing failed: " + last_words(done.stderr or done.stdout)
    stamp.write_text(_wanted(peer))
    return None


def version(peer: Peer) -> str:
    """Its main package's version as installed; "" for this project."""
    if not peer.requirements:
        return ""
    package = peer.requirements[0].partition(">=")[0].partition("[")[0]
    script = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([peer.python(), "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def last_words(text: str) -> str:
    """The last line that says anything: what a reason is made of."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _wanted(peer: Peer) -> str:
    return "\n".join((*peer.requirements, *SHARED))
