"""The units for systemd hold what the settings need."""

from __future__ import annotations

import configparser
from pathlib import Path

from gateway.config import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string((DEPLOY / name).read_text())
    return parser


def test_the_service_waits_as_long_as_the_gateway_may_take():
    service = unit("penstock.service")["Service"]
    settings = Settings()
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) >= settings.drain_timeout_s + 5
    assert int(service["TimeoutStartSec"]) >= settings.child_start_timeout_s + 15
    assert int(service["LimitNOFILE"]) > settings.connections_max
    assert service["KillMode"] == "mixed", "SIGTERM is the gateway's alone"
    assert service["RuntimeDirectoryMode"] == "0700"


def test_the_socket_is_one_that_the_gateway_takes():
    found = unit("penstock.socket")["Socket"]
    assert found["ListenStream"] == f"{Settings().host}:{Settings().port}"
    assert "Accept" not in found, "no is the default"
    assert "penstock.socket" in unit("penstock.service")["Unit"]["Requires"]
