"""What is wanted, what is to be resident, and what the front is told. Lines are stood for by strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.lifecycle.catalogue import Catalogue, Failure, Resident, resumed, with_versions, without_version
from gateway.lifecycle.desired import Desired, Shadow, Want
from gateway.lifecycle.routes import Absent, Lazy
from gateway.lifecycle.watcher import Found, Look
from gateway.models.repository import ModelVersion
from gateway.models.spec import Contract, Fake, Input, Output, Residency

NO_CHANGE = ([], [])


def found(name="m", version=1, generation=0, **residency):
    contract = Contract(
        input=Input(width=4, height=4),
        output=Output(task="classification"),
        backend="fake",
        fake=Fake(),
        residency=Residency(**residency),
    )
    return Found(ModelVersion(name, version, Path("x"), contract, ()), (("model.toml", 1, generation),))


def catalogue(*versions, policy="latest", wants=None):
    made = Catalogue(policy, Desired(models=wants or {}))
    look(made, *versions)
    return made


def look(made, *versions, faults=None):
    there: dict = {}
    for version in versions:
        there.setdefault(version.model.name, {})[version.model.version] = version
    made.look = Look(there, faults or {})


def serve(made, *versions):
    for version in versions:
        resident = Resident(version, f"line {version.model.version}", 0)
        resident.serving = True
        made.residents[resident.key] = resident


def fail(made, version):
    made.failures[version.model.name, version.model.version] = Failure(version.signature, "it is broken", 0)


def keys(versions):
    return [(version.model.name, version.model.version) for version in versions]


# -- what is wanted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "want", "wanted"),
    [
        ("latest", None, [3]),
        ("all", None, [1, 2, 3]),
        ("latest", Want(), [3]),
        ("all", Want(versions=()), []),
        ("latest", Want(versions=(1, 2)), [1, 2]),
        ("latest", Want(versions=(2, 9)), [2]),
        ("latest", Want(default=1), [1, 3]),
        ("latest", Want(default=9), [3]),
        ("latest", Want(aliases={"old": 2}, weights={1: 1.0, 3: 1.0}), [1, 2, 3]),
        ("latest", Want(weights={1: 0.0, 3: 1.0}), [3]),
        ("latest", Want(shadow=Shadow(2)), [2, 3]),
        ("latest", Want(versions=(3,), shadow=Shadow(2)), [3]),
    ],
)
def test_the_wanted_versions(policy, want, wanted):
    made = catalogue(found(version=1), found(version=2), found(version=3), policy=policy, wants=want and {"m": want})
    assert list(made.wanted("m")) == wanted
    assert list(made.target()) == [("m", version) for version in wanted]


def test_another_want_can_be_tried():
    made = catalogue(found(version=1), found(version=2))
    assert list(made.wanted("m", Want(versions=(1,)))) == [1]
    assert list(made.target({"m": Want(versions=(1,))})) == [("m", 1)]
    assert list(made.target()) == [("m", 2)]


def test_nobody_wants_what_is_not_there():
    made = catalogue(found("a"), wants={"b": Want(versions=(1,))})
    assert made.names() == ["a"]
    assert made.wanted("b") == {}


def test_everything_that_is_known_has_a_name_there():
    made = catalogue(found("a"))
    serve(made, found("b"))
    look(made, found("a"), faults={("c", 1): "broken"})
    assert made.names() == ["a", "b", "c"]


# -- failures ------------------------------------------------------------------------------------------------------


def test_the_latest_is_the_largest_that_did_not_fail():
    first, second = found(version=1), found(version=2)
    made = catalogue(first, second)
    fail(made, second)
    assert list(made.target()) == [("m", 1)]
    fail(made, first)
    assert list(made.wanted("m")) == [2], "it is still wanted"
    assert made.target() == {}, "and is not tried again"


def test_other_files_are_tried_again():
    made = catalogue(found(version=1))
    fail(made, found(version=1))
    assert made.target() == {}
    look(made, found(version=1, generation=1))
    assert list(made.target()) == [("m", 1)]


def test_on_an_operators_word_the_same_files_are_tried_again():
    made = catalogue(found(version=1))
    fail(made, found(version=1))
    assert list(made.target(awake=[("m", 1)])) == [("m", 1)]


@pytest.mark.parametrize("want", [None, Want(versions=(1,))])
def test_new_files_that_failed_leave_the_old_ones_serving(want):
    old, new = found(generation=0), found(generation=1)
    made = catalogue(old, wants=want and {"m": want})
    serve(made, old)
    look(made, new)
    assert [keys(part) for part in made.difference(made.target())[:1]] == [[("m", 1)]]
    fail(made, new)
    assert made.target() == {("m", 1): old}
    assert made.difference(made.target()) == NO_CHANGE


def test_a_resident_that_failed_with_its_own_files_stays_to_say_so_until_another_version_takes_its_place():
    made = catalogue(found(version=2))
    serve(made, found(version=2))
    fail(made, found(version=2))
    assert list(made.target()) == [("m", 2)]
    look(made, found(version=1), found(version=2))
    assert list(made.target()) == [("m", 1)]


def test_placement():
    assert Resident(found(), "line", 0).is_placed("cuda:3")
    placed = Resident(found(devices=("cpu", "cuda:1")), "line", 0)
    assert [placed.is_placed(device) for device in ("cpu", "cuda:0", "cuda:1")] == [True, False, True]


# -- lazy ones -----------------------------------------------------------------------------------------------------


def test_a_lazy_model_is_loaded_when_it_is_asked_for_and_then_stays():
    lazy = found(lazy=True)
    made = catalogue(lazy)
    assert made.target() == {}
    assert list(made.target(awake=[("m", 1)])) == [("m", 1)]
    serve(made, lazy)
    assert list(made.target()) == [("m", 1)]
    assert made.target(gone=[("m", 1)]) == {}


def test_who_is_awake_and_not_wanted_is_not_loaded():
    made = catalogue(found(lazy=True), wants={"m": Want(versions=())})
    assert made.target(awake=[("m", 1)]) == {}


def test_idleness_is_counted_from_the_last_use():
    resident = Resident(found(lazy=True, idle_s=2), "line", 1_000_000_000)
    assert resident.is_lazy
    assert not resident.is_idle(2_999_999_999)
    assert resident.is_idle(3_000_000_000)
    resident.used(5, 3_000_000_000)
    resident.used(5, 4_000_000_000)
    assert resident.used_ns == 3_000_000_000
    assert not resident.is_idle(4_999_999_999)
    assert resident.is_idle(5_000_000_000)
    assert not Resident(found(lazy=True), "line", 0).is_idle(1 << 62)
    assert not Resident(found(), "line", 0).is_lazy


# -- from here to there --------------------------------------------------------------------------------------------


def test_the_difference():
    kept, gone, changed = found("kept"), found("gone"), found("changed")
    made = catalogue(kept, gone, changed)
    serve(made, kept, gone, changed)
    look(made, kept, found("changed", generation=1), found("new"))
    new, old = made.difference(made.target())
    assert keys(new) == [("changed", 1), ("new", 1)]
    assert [resident.key for resident in old] == [("gone", 1), ("changed", 1)]


def test_what_is_to_be_fresh_is_loaded_anew_though_nothing_changed():
    made = catalogue(found())
    serve(made, found())
    assert made.difference(made.target()) == NO_CHANGE
    new, old = made.difference(made.target(), fresh=[("m", 1)])
    assert (keys(new), [resident.key for resident in old]) == ([("m", 1)], [("m", 1)])


# -- what the front is told ----------------------------------------------------------------------------------------


def test_routes_follow_what_stands():
    made = catalogue(
        found("up", 1),
        found("up", 2),
        found("sleeps", lazy=True),
        found("comes"),
        found("broken"),
        found("off"),
        wants={"off": Want(versions=()), "up": Want(aliases={"stable": 1})},
    )
    serve(made, found("up", 1), found("up", 2))
    fail(made, found("broken"))
    entries = made.routes().entries
    assert entries["up", ""] == entries["up", "2"] == "line 2"
    assert entries["up", "stable"] == entries["up", "1"] == "line 1"
    assert entries["sleeps", ""] == Lazy(1)
    assert entries["comes", ""] is Absent.LOADING
    assert entries["broken", ""] is Absent.FAILED
    assert entries["off", ""] is entries["off", "1"] is Absent.UNLOADED
    assert ("nobody", "") not in entries


def test_one_that_is_being_loaded_gets_no_requests_yet():
    made = catalogue(found())
    made.residents["m", 1] = Resident(found(), "line", 0)
    assert made.routes().entries["m", ""] is Absent.LOADING


def test_while_one_worker_follows_another_requests_wait():
    made = catalogue(found())
    serve(made, found())
    made.held = frozenset({("m", 1)})
    assert made.routes().entries["m", ""] == Lazy(1)


def test_what_is_resident_serves_though_it_is_not_wanted_or_not_there_any_more():
    made = catalogue()
    serve(made, found())
    assert made.routes().entries["m", ""] == "line 1"


def test_a_model_as_plain_data():
    made = catalogue(found(version=1), found(version=2), wants={"m": Want(weights={1: 1.0, 2: 3.0}, aliases={"x": 9})})
    made.look.faults["m", 3] = "model.toml is missing"
    serve(made, found(version=2))
    fail(made, found(version=1))
    assert made.document("m", {("m", 2): {"state": "ready", "line": 7}}) == {
        "name": "m",
        "want": {
            "versions": None,
            "default": None,
            "aliases": {"x": 9},
            "weights": {"1": 1.0, "2": 3.0},
            "shadow": None,
        },
        "default_version": 2,
        "reports": list(made.routes().reports["m"]),
        "versions": [
            {"version": 1, "state": "failed", "wanted": True, "error": "it is broken"},
            {"version": 2, "state": "ready", "wanted": True, "line": 7},
            {"version": 3, "state": "failed", "wanted": False, "error": "model.toml is missing"},
        ],
    }
    assert len(made.document("m", {})["reports"]) == 2


# -- an operator's word --------------------------------------------------------------------------------------------


def test_versions_are_added_to_those_that_are_wanted():
    assert with_versions(Want(), [2], [1]).versions == (1, 2)
    assert with_versions(Want(versions=(3,)), [2], [3, 1]).versions == (1, 3)
    assert with_versions(Want(versions=(), default=1), [], [1]) == Want(versions=(1,), default=1)


def test_a_version_that_goes_leaves_no_word_of_itself():
    want = Want(default=1, aliases={"a": 1, "b": 2}, weights={1: 1.0, 2: 1.0}, shadow=Shadow(1))
    assert without_version(want, [1, 2], 1) == Want(versions=(2,), aliases={"b": 2}, weights={2: 1.0})
    kept = Want(versions=(1, 2), default=2, aliases={"b": 2}, weights={2: 1.0}, shadow=Shadow(2))
    assert without_version(kept, [], 1) == Want(
        versions=(2,), default=2, aliases={"b": 2}, weights={2: 1.0}, shadow=Shadow(2)
    )
    assert without_version(Want(weights={1: 1.0, 2: 0.0}), [1, 2], 1).weights == {}


def test_what_was_unloaded_on_purpose_follows_the_repository_again():
    assert resumed(Want(versions=(), default=1)) == Want(default=1)
    assert resumed(Want(versions=(1,))) == Want(versions=(1,))
    assert resumed(Want()) == Want()
