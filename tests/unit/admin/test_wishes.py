"""The options of `penstock set`, and what they make of a want."""

from __future__ import annotations

import pytest

from gateway.admin.wishes import apply, read_changes

WANT = {"versions": [1, 2], "default": 1, "aliases": {"old": 1, "new": 2}, "weights": {"1": 9.0}, "shadow": None}


def changed(**options):
    return apply(WANT, read_changes(**options))


def test_what_is_not_named_stays():
    assert changed(default=2) == {
        "versions": [1, 2],
        "default": 2,
        "aliases": {"old": 1, "new": 2},
        "weights": {"1": 9.0},
    }


def test_weights_are_replaced_as_a_whole():
    assert changed(weights=["1=0.9", "2=.1"])["weights"] == {"1": 0.9, "2": 0.1}


def test_aliases_are_changed_one_by_one():
    assert changed(aliases=["new=1", "old=", "third=2"])["aliases"] == {"new": 1, "third": 2}


def test_the_first_alias_of_all():
    assert apply({}, read_changes(aliases=["a=1"])) == {"aliases": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "shadow"),
    [("2", {"version": 2}), ("2:0.25", {"version": 2, "share": 0.25}), ("2:0", {"version": 2, "share": 0})],
)
def test_a_shadow(text, shadow):
    assert changed(shadow=text)["shadow"] == shadow


@pytest.mark.parametrize("key", ["versions", "default", "aliases", "weights"])
def test_clearing_is_leaving_out(key):
    assert key not in changed(clear=[key])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": ["2"]}, "VERSION=WEIGHT"),
        ({"weights": ["=1"]}, "VERSION=WEIGHT"),
        ({"weights": ["0=1"]}, "VERSION=WEIGHT"),
        ({"weights": ["x=1"]}, "VERSION=WEIGHT"),
        ({"weights": ["1=x"]}, "VERSION=WEIGHT"),
        ({"aliases": ["a"]}, "NAME=VERSION"),
        ({"aliases": ["=1"]}, "NAME=VERSION"),
        ({"aliases": ["a=x"]}, "NAME=VERSION"),
        ({"aliases": ["a=01"]}, "NAME=VERSION"),
        ({"shadow": ""}, "VERSION:SHARE"),
        ({"shadow": "1:"}, "VERSION:SHARE"),
        ({"shadow": "x:1"}, "VERSION:SHARE"),
        ({"clear": ["alias"]}, "aliases"),
        ({"clear": ["default"], "default": 1}, "go together"),
        ({}, "nothing to set"),
    ],
)
def test_what_does_not_fit_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        read_changes(**options)
