"""Whatever is wanted and stands where: the table leads where it says, and keys move no more than they must."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.lifecycle.desired import Shadow, Want
from gateway.lifecycle.routes import Absent, Lazy, Split, Standing, build

VERSIONS = st.integers(1, 5)
WEIGHTS = st.floats(0, 1e6)
KEYS = st.text(max_size=40)
PLACES = ("served", "lazy", "loading", "failed", "unloaded")


@st.composite
def wants(draw):
    weights = draw(st.dictionaries(VERSIONS, WEIGHTS, max_size=4))
    return Want(
        default=draw(st.none() | VERSIONS),
        aliases=draw(st.dictionaries(st.sampled_from(["stable", "next", "007"]), VERSIONS, max_size=3)),
        weights=weights if any(weights.values()) else {},
        shadow=draw(st.none() | st.builds(Shadow, VERSIONS, st.floats(0, 1))),
    )


@st.composite
def standings(draw):
    placed = draw(st.dictionaries(VERSIONS, st.sampled_from(PLACES), max_size=5))
    places = {place: frozenset(v for v, where in placed.items() if where == place) for place in PLACES[1:]}
    served = {version: f"line {version}" for version, where in placed.items() if where == "served"}
    return Standing(draw(wants()), served, **places), placed


def place_of(entry) -> str:
    if isinstance(entry, Lazy):
        return "lazy"
    return entry.name.lower() if isinstance(entry, Absent) else "served"


@given(standings(), KEYS)
def test_the_table_leads_where_it_says(given_standing, key):
    standing, placed = given_standing
    want = standing.want
    routes = build({"m": standing})
    for version, place in placed.items():
        entry = routes.entries["m", str(version)]
        assert place_of(entry) == place
        assert place != "served" or entry == f"line {version}"
    able = {version for version, place in placed.items() if place in ("served", "lazy")}
    entry = routes.entries["m", ""]
    if isinstance(entry, Split):
        chosen = entry.choose(key)
        assert chosen in able
        assert want.weights[chosen] > 0
    elif isinstance(entry, Absent):
        assert able <= {want.shadow.version if want.shadow else 0}
    else:
        assert place_of(entry) in ("served", "lazy")
    default = routes.defaults.get("m")
    assert default is None or default in able
    if want.default in able:
        assert default == want.default
    for (_, original), copies in routes.shadows.items():
        assert original == default != copies.version == want.shadow.version
        assert copies.line == f"line {copies.version}"
    for alias, version in want.aliases.items():
        if alias != "007" and version in placed:
            assert routes.entries["m", alias] is routes.entries["m", str(version)]


@given(st.dictionaries(VERSIONS, st.floats(1e-6, 1e6), min_size=2), VERSIONS, st.floats(1, 1e3), st.lists(KEYS))
def test_raising_a_weight_moves_keys_to_it_only(weights, raised, factor, keys):
    assume(raised in weights)
    versions = tuple(sorted(weights))
    before = Split("m", versions, tuple(weights[version] for version in versions))
    higher = weights | {raised: weights[raised] * factor}
    after = Split("m", versions, tuple(higher[version] for version in versions))
    for key in keys:
        assert after.choose(key) in (before.choose(key), raised)


@given(st.dictionaries(VERSIONS, st.floats(1e-6, 1e6), min_size=3), st.lists(KEYS), st.data())
def test_a_version_that_goes_moves_its_own_keys_only(weights, keys, data):
    versions = tuple(sorted(weights))
    gone = data.draw(st.sampled_from(versions))
    left = tuple(version for version in versions if version != gone)
    whole = Split("m", versions, tuple(weights[version] for version in versions))
    without = Split("m", left, tuple(weights[version] for version in left))
    for key in keys:
        chosen = whole.choose(key)
        assert chosen == gone or without.choose(key) == chosen
