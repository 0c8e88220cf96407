"""What an answer must say: a text in it, or a value at a path."""

from __future__ import annotations

import msgpack
import orjson
import pytest

from gateway.bench import expectation
from gateway.errors import InvalidSettings

DOCUMENT = {"prediction": [{"class": "cat", "index": 281}], "ok": True, "a-b": {"x y": None}, "n": 1}


@pytest.mark.parametrize("pack", [orjson.dumps, msgpack.packb])
@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("$.prediction[0].class=cat", True),
        ("$.prediction[0].index=281", True),
        ("$.prediction[0].index=281.0", True),
        ("$.prediction[0].index=282", False),
        ('$.prediction[0].index="281"', False),
        ("$.prediction[1].class=cat", False),
        ("$.prediction.class=cat", False),
        ("$.ok=true", True),
        ("$.ok=1", False),
        ("$.n=true", False),
        ("$.nothing=null", False),
        ("$.a-b['x y']=null", True),
        ('$.prediction[0]={"class":"cat","index":281}', True),
        ("cat", True),
        ("dog", False),
    ],
)
def test_a_document(pack, text, met):
    assert expectation.read(text).met(pack(DOCUMENT)) is met


def test_a_list_and_what_is_no_document():
    assert expectation.read("$[0][1]=2").met(b"[[1, 2]]")
    assert expectation.read("$=7").met(b"7")
    assert not expectation.read("$.a=1").met(b"<html>a=1</html>")
    assert not expectation.read("$.a=1").met(b"")
    assert expectation.read("a=1").met(b"<html>a=1</html>")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("$.a", r"needs a value; write \$\.a=value"),
        ("$.a[x]=1", r"no path at '\[x\]'"),
        ("$a=1", "no path at 'a'"),
    ],
)
def test_what_is_no_expectation_is_told(text, says):
    with pytest.raises(InvalidSettings, match=says):
        expectation.read(text)
