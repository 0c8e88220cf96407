"""The commands for operators, as a user types them, against a front whose changes are only remembered."""

from __future__ import annotations

import json
import tomllib

import pytest

from gateway import errors
from gateway.admin import client
from gateway.clients import digest_of
from gateway.config import Settings
from gateway.lifecycle.desired import Shadow, Want

CHANGES = (["load", "m"], ["unload", "m"], ["reload", "m"], ["set", "m", "--default", "1"])


def flat(result) -> str:
    return " ".join((result.stdout + result.stderr).split())


# -- changes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["load", "m"], ("load", "m", None)),
        (["load", "m", "--version", "2"], ("load", "m", (2,))),
        (["load", "m", "--version", "2", "--default"], ("load", "m", (2,), 2)),
        (["unload", "m"], ("unload", "m", None)),
        (["unload", "m", "--version", "3"], ("unload", "m", 3)),
        (["reload", "m"], ("reload", "m", None)),
        (["reload", "m", "--version", "3"], ("reload", "m", 3)),
        (["set", "m", "--default", "1"], ("configure", "m", Want(default=1))),
        (
            ["set", "m", "--weight", "1=9", "--weight", "3=1", "--alias", "old=1", "--shadow", "3:0.5"],
            ("configure", "m", Want(weights={1: 9.0, 3: 1.0}, aliases={"old": 1}, shadow=Shadow(version=3, share=0.5))),
        ),
    ],
)
def test_a_command_asks_for_what_it_says_and_tells_the_end(admin, run, arguments, call):
    found = run(*arguments)
    assert found.exit_code == 0, flat(found)
    assert admin.changes.calls == [call]
    assert f"succeeded {call[0]} m" in flat(found)
    assert "seconds: 0.5" in flat(found)


def test_set_keeps_what_it_does_not_name(admin, run):
    admin.changes.wants["m"] = Want(aliases={"old": 1}, weights={1: 1.0})
    assert run("set", "m", "--default", "3", "--clear", "weights").exit_code == 0
    assert admin.changes.wants["m"] == Want(aliases={"old": 1}, default=3)


def test_an_operation_is_followed_to_its_end(admin, run, monkeypatch):
    admin.changes.outcome = None
    ask = client.AdminClient.ask

    def operation():
        return next(iter(admin.changes.operations))

    def end():
        admin.changes.outcome = "succeeded"
        admin.changes.end(operation())

    steps = iter((lambda: None, lambda: None, lambda: operation().progress("warming", 0.9), end))

    def stepped(self, *arguments):
        admin.call(next(steps))
        return ask(self, *arguments)

    monkeypatch.setattr(client.AdminClient, "ask", stepped)
    found = run("reload", "m")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[:3] == ["reload m: loading", "reload m: warming", "reload m: done"]


@pytest.mark.parametrize("arguments", CHANGES)
def test_a_change_that_fails_is_1_with_its_words(admin, run, arguments):
    admin.changes.outcome = errors.OperationFailed("the worker died twice while it loaded m/2")
    found = run(*arguments)
    assert found.exit_code == 1
    assert "operation_failed: the worker died twice while it loaded m/2" in flat(found)


@pytest.mark.parametrize("command", ["load", "unload", "reload"])
def test_what_is_not_known_is_2(run, command):
    found = run(command, "other")
    assert (found.exit_code, "unknown_model" in flat(found)) == (2, True)


@pytest.mark.parametrize("name", ["..", "a/b", "../../etc/passwd", "m?version=1", "m#", "%2e%2e", "", "\u00fc"])
@pytest.mark.parametrize("command", ["load", "unload", "reload"])
def test_what_is_no_name_is_2(admin, run, command, name):
    assert run(command, name).exit_code == 2
    assert not admin.changes.calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["load", "m", "--version", "x"],
        ["load", "m", "--version", "0"],
        ["load", "m", "--default"],
        ["unload", "m", "--version", "-1"],
        ["set", "m"],
        ["set", "m", "--weight", "1"],
        ["set", "m", "--weight", "1=-1"],
        ["set", "m", "--weight", "1=nan"],
        ["set", "m", "--alias", "7=1"],
        ["set", "m", "--shadow", "1:2"],
        ["set", "m", "--clear", "all"],
        ["set", "other", "--default", "1"],
        ["load"],
    ],
)
def test_wrong_input_is_2_and_changes_nothing(admin, run, arguments):
    found = run(*arguments)
    assert found.exit_code == 2, flat(found)
    assert not admin.changes.calls


def test_a_fault_of_the_servers_is_1(admin, run, monkeypatch):
    monkeypatch.setattr(admin.changes, "reload", lambda *_: 1 / 0)
    assert run("reload", "m").exit_code == 1


def interrupted(*_):
    raise KeyboardInterrupt


def test_ctrl_c_leaves_the_work_alone(run, monkeypatch):
    monkeypatch.setattr("gateway.admin.screens.follow", interrupted)
    found = run("reload", "m")
    assert (found.exit_code, "goes on" in flat(found)) == (130, True)
    monkeypatch.setattr(client.AdminClient, "drain", interrupted)
    found = run("drain")
    assert (found.exit_code, "goes on" in flat(found)) == (130, True)


# -- status and drain ----------------------------------------------------------------------------------------------


def test_status_is_for_people(admin, run):
    admin.changes.outcome = None
    admin.ask("POST", "/admin/models/m/reload")
    found = flat(run("status"))
    for said in (
        *("pid 4710", "ready", "m", "unloaded", "4711", "cpu", "m/1, m/3", "3 (default)", "7 MiB", "300 MiB"),
        *("m: it is a test", "reload m: loading, 50%"),
    ):
        assert said in found


def test_status_is_for_scripts(admin, run):
    found = run("status", "--json")
    assert json.loads(found.stdout) == admin.ask("GET", "/admin/status").document


def test_drain_waits_until_the_gateway_is_gone(admin, run, monkeypatch):
    asked = []
    whole = client.AdminClient.ask

    def ask(self, method, path, document=None):
        asked.append((method, path))
        if asked.count(("GET", "/admin/status")) > 3:
            raise client.Unreachable("gone")
        return whole(self, method, path, document)

    monkeypatch.setattr(client.AdminClient, "ask", ask)
    found = run("drain")
    assert (found.exit_code, admin.changes.draining) == (0, True)
    assert "draining: 0 image(s) in flight the gateway is gone" in flat(found)


def test_drain_is_over_when_a_successor_answers(admin, run, monkeypatch):
    pids = iter([1, 1, 2])
    monkeypatch.setattr(admin.changes, "status", lambda: {"pid": next(pids), "in_flight": 0})
    assert "the gateway is gone" in flat(run("drain"))


# -- the token -----------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_its_setting_fits(type_in):
    found = type_in("admin-token")
    token = found.stderr.split()[-1]
    setting = tomllib.loads(found.stdout)
    assert token.startswith("psa_")
    assert setting == {"admin_token_sha256": digest_of(token)}
    assert Settings(admin_port=9090, **setting).admin_port == 9090
    assert token not in found.stdout
    assert type_in("admin-token").stderr.split()[-1] != token
