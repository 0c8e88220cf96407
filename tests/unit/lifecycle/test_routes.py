"""Who answers which request. Lines are stood for by strings: the table never looks into one."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.lifecycle.desired import Shadow, Want
from gateway.lifecycle.routes import Absent, Copies, Lazy, Split, Standing, build, faults

KEYS = [f"user-{number}" for number in range(4000)]


def table(want: Want | None = None, **standing):
    """The table of one model `m`; `served` by number only."""
    served = {version: f"line {version}" for version in standing.pop("served", ())}
    placed = {place: frozenset(versions) for place, versions in standing.items()}
    return build({"m": Standing(want or Want(), served, **placed)})


def unnamed(want: Want | None = None, **standing):
    return table(want, **standing).entries["m", ""]


def split(**weights: float) -> Split:
    """A split of model m: v1=0.5, v2=0.5."""
    return Split("m", tuple(int(name[1:]) for name in weights), tuple(weights.values()))


def shares(chosen: Split) -> dict[int, float]:
    found = [chosen.choose(key) for key in KEYS]
    return {version: found.count(version) / len(found) for version in chosen.versions}


# -- numbers, default, aliases -------------------------------------------------------------------------------------


def test_every_served_version_answers_to_its_number():
    routes = table(served=[1, 3])
    assert routes.entries["m", "1"] == "line 1"
    assert routes.entries["m", "3"] == "line 3"
    assert ("m", "2") not in routes.entries


def test_without_a_word_the_largest_served_version_answers():
    routes = table(served=[9, 10])
    assert routes.entries["m", ""] == "line 10"
    assert routes.defaults == {"m": 10}
    assert not routes.reports


def test_the_default_version_answers():
    assert unnamed(Want(default=1), served=[1, 2]) == "line 1"


@pytest.mark.parametrize(("known", "words"), [((), "is not there"), ((2,), "cannot answer now")])
def test_a_default_that_is_not_served_gives_way_and_is_reported(known, words):
    routes = table(Want(default=2), served=[1], failed=known)
    assert routes.entries["m", ""] == "line 1"
    assert [words in report for report in routes.reports["m"]] == [True]


def test_an_alias_answers_as_its_version_does():
    routes = table(Want(aliases={"stable": 1, "next": 2, "cold": 3}), served=[1], loading=[2], lazy=[3])
    assert routes.entries["m", "stable"] == "line 1"
    assert routes.entries["m", "next"] is Absent.LOADING
    assert routes.entries["m", "cold"] == Lazy(3)


def test_an_alias_that_looks_like_a_number_is_left_out_and_reported():
    routes = table(Want(aliases={"007": 1}), served=[1, 2])
    assert set(routes.entries) == {("m", ""), ("m", "1"), ("m", "2")}
    assert "alias" in routes.reports["m"][0]


def test_an_alias_of_nothing_is_left_out_and_reported():
    routes = table(Want(aliases={"stable": 7}), served=[1])
    assert ("m", "stable") not in routes.entries
    assert "version 7" in routes.reports["m"][0]


def test_models_do_not_mix():
    routes = build({"a": Standing(served={1: "line a"}), "b": Standing(served={2: "line b"})})
    assert routes.entries["a", ""] == "line a"
    assert routes.entries["b", ""] == "line b"
    assert ("a", "2") not in routes.entries


# -- versions that cannot answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "entry"),
    [
        ({"loading": [1]}, Absent.LOADING),
        ({"loading": [2], "failed": [1]}, Absent.LOADING),
        ({"failed": [1]}, Absent.FAILED),
        ({"unloaded": [1]}, Absent.UNLOADED),
        ({"unloaded": [1], "failed": [2]}, Absent.FAILED),
        ({}, Absent.UNLOADED),
    ],
)
def test_a_model_without_a_version_that_answers_says_why(standing, entry):
    assert unnamed(**standing) is entry


def test_old_answers_until_new_is_there():
    routes = table(served=[1], loading=[2])
    assert routes.entries["m", ""] == "line 1"
    assert routes.entries["m", "2"] is Absent.LOADING
    assert not routes.reports, "nothing is wrong"


@pytest.mark.parametrize(
    ("absent", "kind", "retry_after_s"),
    [
        (Absent.LOADING, errors.ModelNotReady, 1),
        (Absent.FAILED, errors.ModelNotReady, None),
        (Absent.UNLOADED, errors.UnknownModel, None),
        (Absent.UNNAMED, errors.UnknownModel, None),
    ],
)
def test_each_reason_has_its_refusal(absent, kind, retry_after_s):
    refusal = absent.refusal("m")
    assert type(refusal) is kind
    assert refusal.retry_after_s == retry_after_s
    assert "model m" in refusal.detail


def test_a_lazy_version_is_asked_as_if_it_were_there():
    assert unnamed(lazy=[3]) == Lazy(3)
    assert unnamed(served=[1], lazy=[3]) == Lazy(3), "the largest"
    assert unnamed(Want(default=1), lazy=[1, 3]) == Lazy(1)
    assert table(lazy=[3]).entries["m", "3"] == Lazy(3)


# -- weights -------------------------------------------------------------------------------------------------------


def test_weights_split_what_names_no_version():
    routes = table(Want(weights={3: 1.0, 1: 9.0}), served=[1, 2, 3])
    assert routes.entries["m", ""] == Split("m", (1, 3), (9.0, 1.0))
    assert routes.entries["m", "3"] == "line 3", "a number is a number"


def test_weights_of_versions_that_are_not_served_are_left_out_and_reported():
    routes = table(Want(weights={1: 1.0, 2: 1.0, 3: 2.0, 4: 0.0}), served=[1], lazy=[3], loading=[2])
    assert routes.entries["m", ""] == Split("m", (1, 3), (1.0, 2.0))
    assert routes.reports["m"] == ("weights name version 2 that cannot answer now; the others share all requests",)


def test_a_split_of_one_is_none():
    assert unnamed(Want(default=2, weights={1: 0.1, 2: 0.0}), served=[1, 2]) == "line 1"


def test_weights_of_versions_that_are_gone_leave_the_default():
    assert unnamed(Want(default=1, weights={5: 1.0}), served=[1, 2]) == "line 1"


def test_as_many_versions_are_drawn_among_as_each_request_can_bear():
    want = Want(weights=dict.fromkeys(range(1, 21), 1.0))
    assert unnamed(want, served=range(1, 21)).versions == tuple(range(1, 17))


def test_keys_fall_by_weight():
    found = shares(split(v1=1.0, v2=2.0, v3=7.0))
    assert found[1] == pytest.approx(0.1, abs=0.03)
    assert found[2] == pytest.approx(0.2, abs=0.03)
    assert found[3] == pytest.approx(0.7, abs=0.03)


def test_only_the_proportion_counts():
    small, large = split(v1=0.1, v2=0.3), split(v1=1000.0, v2=3000.0)
    assert [small.choose(key) for key in KEYS] == [large.choose(key) for key in KEYS]


def test_a_key_stays_where_it_is():
    chosen = split(v1=1.0, v2=1.0)
    assert [chosen.choose(key) for key in KEYS] == [chosen.choose(key) for key in KEYS]
    # Written down: whoever changes the draw moves every user of every canary to another version.
    assert [chosen.choose(key) for key in "abcdefgh"] == [1, 1, 2, 1, 1, 2, 2, 2]


def test_models_draw_apart():
    one, other = Split("a", (1, 2), (1.0, 1.0)), Split("b", (1, 2), (1.0, 1.0))
    same = sum(one.choose(key) == other.choose(key) for key in KEYS) / len(KEYS)
    assert same == pytest.approx(0.5, abs=0.05), "else the same users would get every canary"


@pytest.mark.parametrize("raised", [1, 2, 3])
def test_raising_one_weight_moves_keys_to_it_only_and_no_more_than_it_must(raised):
    weights = {"v1": 1.0, "v2": 1.0, "v3": 1.0}
    before = split(**weights)
    after = split(**weights | {f"v{raised}": 2.0})
    moved = [(before.choose(key), after.choose(key)) for key in KEYS if before.choose(key) != after.choose(key)]
    assert {to for _, to in moved} == {raised}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 2 - 1 / 3, abs=0.03)


def test_a_version_that_goes_moves_its_own_keys_only_and_gets_them_back():
    whole, without = split(v1=1.0, v2=1.0, v3=1.0), split(v1=1.0, v3=1.0)
    for key in KEYS:
        if whole.choose(key) != 2:
            assert without.choose(key) == whole.choose(key)


@pytest.mark.parametrize("key", ["", "\ud800\udcff", "ключ", "x" * 256])
def test_any_key_is_a_key(key):
    assert split(v1=1.0, v2=1.0).choose(key) in (1, 2)


# -- shadows -------------------------------------------------------------------------------------------------------


def test_a_shadow_stands_behind_the_default():
    routes = table(Want(default=1, shadow=Shadow(2, share=0.5)), served=[1, 2])
    assert routes.shadows == {("m", 1): Copies(2, "line 2", 0.5)}


def test_a_shadow_is_never_the_default_by_its_size():
    routes = table(Want(shadow=Shadow(2)), served=[1, 2])
    assert routes.entries["m", ""] == "line 1"
    assert routes.shadows == {("m", 1): Copies(2, "line 2", 1.0)}
    assert not routes.reports


def test_a_shadow_alone_answers_nobody():
    want = Want(shadow=Shadow(2))
    assert unnamed(want, served=[2]) is Absent.UNNAMED
    assert unnamed(want, served=[2], loading=[1]) is Absent.LOADING
    assert unnamed(want, served=[2], failed=[1]) is Absent.FAILED
    routes = table(want, served=[2])
    assert "only the shadow" in routes.reports["m"][0]
    assert not routes.shadows
    assert not routes.defaults


@pytest.mark.parametrize(
    ("want", "places", "words"),
    [
        (Want(default=1, shadow=Shadow(1)), {"served": [1]}, "its own shadow"),
        (Want(shadow=Shadow(2)), {"served": [1]}, "not loaded"),
        (Want(shadow=Shadow(2)), {"served": [1], "lazy": [2]}, "not loaded"),
    ],
)
def test_a_shadow_that_cannot_be_is_reported(want, places, words):
    routes = table(want, **places)
    assert not routes.shadows
    assert [words in report for report in routes.reports["m"]] == [True]


def test_a_share_of_nothing_is_no_shadow():
    routes = table(Want(shadow=Shadow(2, share=0.0)), served=[1, 2])
    assert not routes.shadows
    assert not routes.reports


# -- wants by themselves -------------------------------------------------------------------------------------------


GOOD = Want(
    versions=(1, 2, 3),
    default=1,
    aliases={"stable": 1, "next-2.0": 2},
    weights={1: 9.0, 2: 1.0, 3: 0.0},
    shadow=Shadow(3, share=0.25),
)


@pytest.mark.parametrize("want", [GOOD, Want(), Want(versions=()), Want(versions=(), default=1)])
def test_a_good_want_has_no_faults(want):
    assert faults(want) == []


@pytest.mark.parametrize(
    ("want", "words"),
    [
        (Want(versions=(1,), default=2), "default names version 2, which versions does not"),
        (Want(versions=(1,), aliases={"old": 3, "older": 3}), "aliases names version 3"),
        (Want(versions=(1,), weights={1: 1.0, 4: 1.0}), "weights names version 4"),
        (Want(versions=(1,), shadow=Shadow(5)), "shadow names version 5"),
        (Want(aliases={"007": 1}), "not a number"),
        (Want(weights=dict.fromkeys(range(1, 18), 1.0)), "16 at most"),
        (Want(default=2, shadow=Shadow(2)), "with itself"),
    ],
)
def test_each_fault_is_named(want, words):
    found = faults(want)
    assert len(found) == 1, found
    assert words in found[0]


def test_faults_do_not_hide_each_other():
    assert len(faults(Want(versions=(1,), default=2, aliases={"02": 3}, shadow=Shadow(2)))) == 5
