"""Tuning a model.toml changes the tuned keys and nothing else, however the file is written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.models.spec import parse_contract
from gateway.tuning import contract_file


def tune(text: str, sizes, deadline_ms: float) -> str:
    return contract_file.edit(text, contract_file.tuned(parse_contract(text), text, sizes, deadline_ms))


comments = st.sampled_from(["", " # a comment", "  # sizes = [9] [batching] {", '\t#\'"""'])
blank = st.sampled_from(["", "\n", "# [batching]\n", "   # sizes = [1]\n\n"])
values = st.sampled_from(
    ["[1, 2]", "[1,\n  4, # sizes, and ] no end\n  8, # sizes\n]", "[ 7 ]", "[ # [\n  1 # sizes\n]"]
)
windows = st.sampled_from(["0", "2.5", "1_0", "0.0"])
DESCRIPTIONS = (
    'description = "a # [batching] \\" sizes = [3]"',
    "description = '''\n[batching]\nsizes = [5]\n''''",
    'description = """\n[limits]\ndeadline_ms = 3\\\n  \\""""""',
    "description = 'c:\\'",
)


def spaced(draw, key: str, value: str) -> str:
    around = draw(st.sampled_from([" = ", "=", "  =\t"]))
    quoted = draw(st.sampled_from([key, f'"{key}"', f"'{key}'"]))
    return f"{quoted}{around}{value}{draw(comments)}\n"


@st.composite
def files(draw) -> str:
    """A valid model.toml, in any of the ways in which its sections can be written."""
    top = ['backend = "fake"\n', draw(st.sampled_from(DESCRIPTIONS)) + "\n"]
    sections = {
        "input": ["width = 4\n", "height=4 # px\n", "mean = [\n 0.0, 0,\n 0 ]\n"],
        "output": ["task = 'raw'\n"],
        "fake": draw(st.sampled_from([[], ["base_ms = 1.5\n"]])),
    }
    batching = {}
    if draw(st.booleans()):
        batching["sizes"] = draw(values)
    if draw(st.booleans()):
        batching["window_ms"] = draw(windows)
    limits = draw(st.sampled_from([{}, {"deadline_ms": "77"}, {"queue_max": "9"}, {"deadline_ms_max": "60_000"}]))
    for name, keys in (("batching", batching), ("limits", limits)):
        way = draw(st.sampled_from(["section", "inline", "dotted", "none"]))
        if way == "section":
            sections[name] = [spaced(draw, key, value) for key, value in keys.items()]
        elif way == "inline":
            inside = ", ".join(f"{key} = {value}" for key, value in keys.items() if "\n" not in value)
            top.append(f"{name} = {{{inside}}}{draw(comments)}\n")
        elif way == "dotted":
            top += [f"{name}{draw(st.sampled_from(['.', ' . ']))}{key} = {value}\n" for key, value in keys.items()]
    text = "".join(line + draw(blank) for line in draw(st.permutations(top)))
    for name in draw(st.permutations(list(sections))):
        header = draw(st.sampled_from([f"[{name}]", f"[ {name} ]", f'["{name}"]']))
        text += f"{header}{draw(comments)}\n" + "".join(line + draw(blank) for line in sections[name])
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(files(), st.sets(st.integers(1, 1024), min_size=1, max_size=16).map(sorted), st.floats(1, 600))
def test_any_contract_stays_valid_and_only_the_tuned_keys_change(text, sizes, deadline_ms):
    before = tomllib.loads(text)
    named = "deadline_ms" in before.get("limits", {})
    tuned = tune(text, sizes, deadline_ms)
    after = tomllib.loads(tuned)
    wanted = {**before, "batching": {**before.get("batching", {}), "sizes": sizes, "window_ms": 0}}
    if not named:
        wanted["limits"] = {**before.get("limits", {}), "deadline_ms": deadline_ms}
    assert after == wanted
    assert parse_contract(tuned).batching.sizes == tuple(sizes)
    assert tune(tuned, sizes, deadline_ms) == tuned, "a second time there is nothing to do"
    # What may change names what is tuned, or goes on with its value.
    touched = ("batching", "sizes", "limits", "window")
    kept = [
        line for line in text.splitlines() if not line.startswith("]") and not any(word in line for word in touched)
    ]
    left = iter(tuned.splitlines())
    assert all(line in left for line in kept), "the others are all there, in their order"
