"""What `penstock bench` refuses before it sends anything, in one sentence each."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gateway.bench import wish
from gateway.bench.wish import Address
from gateway.cli import app
from gateway.errors import InvalidSettings

NOWHERE = "http://127.0.0.1:1/p"


def refused(*arguments) -> str:
    found = CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "300"})
    assert (found.exit_code, found.stdout) == (2, ""), found.output
    assert found.stderr.startswith("penstock: ")
    assert found.stderr.count("\n") == 1
    return found.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--connections 0", "--connections is 0; it must be from 1 to 10000"),
        ("--seconds nan", "--seconds is nan; it must be over 0"),
        ("--warmup -1", "--warmup is -1"),
        ("--percentile 100", "--percentile is 100"),
        ("--load poisson", "--load poisson needs --rate, in requests a second, or --search"),
        ("--load closed --rate 5", "--rate goes with --load poisson, bursts or server"),
        ("--load poisson --search --rate 5 --bound-ms 9", "--search finds the rate; leave --rate away"),
        ("--load poisson --search", "--search needs --bound-ms"),
        ("--load offline --search --bound-ms 5", "--load offline has none"),
        ("--load server --rate 5", "--load server needs --bound-ms"),
        ("--load trace", "--load trace needs --trace FILE"),
        ("--trace x", "--load trace needs --trace FILE"),
        ("--load trace --trace nowhere", "--trace nowhere: cannot be read (No such file"),
        ("--body nowhere", "--body needs --content-type"),
        ("--body nowhere --content-type a/b", "--body nowhere: cannot be read"),
        ("--body nowhere --content-type a/b --form raw", "--body is sent as it is"),
        ("--content-type a/b", "--content-type goes with --body"),
        ("--form raw --images-per-request 2", "--form raw holds one image"),
        ("--load multi-stream --form raw", "--load multi-stream has 8 images in a request"),
        ("--images nowhere", "--images nowhere: cannot be read"),
        ("--size 5", "--size 5 is none; write WIDTHxHEIGHT"),
        ("--size 0x5", "--size 0x5 is none"),
        ("--header nonsense", "--header 'nonsense' is none; write 'Name: value'"),
        ("--header Host:x", "--header Host: that one is written by the load test itself"),
        ("--expect $.a", "--expect $.a: a path needs a value"),
        ("--html nowhere/x.html", "--html nowhere/x.html: is a folder, or is in none"),
        ("--json .", "--json .: is a folder"),
        ("", "no answer from http://127.0.0.1:1: "),
    ],
)
def test_what_does_not_go_together_is_told(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if says.startswith(("--trace nowhere", "--body nowhere: ", "--images nowhere")):
        # These files are looked for once the server is known.
        from tests.support.strangers import CAT, stranger  # noqa: PLC0415

        with stranger(lambda _: CAT) as server:
            assert says in refused(server.url + "/p", *options.split())
    else:
        assert says in refused(NOWHERE, *options.split())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:80", "is not an address"),
        ("https://x/y", "TLS is not spoken here"),
        ("http://", "is not an address"),
        ("http://x:99999/", "is not an address"),
        ("http://me:secret@x/", "no user in a URL"),
        ("http://x/ä", "written as %XX"),
    ],
)
def test_an_address_that_is_none_is_told(url, says):
    with pytest.raises(InvalidSettings, match=says) as caught:
        wish.address(url)
    assert "secret" not in str(caught.value)


def test_an_address():
    assert wish.address("http://h:81/a?b=1") == Address("h", 81, "/a?b=1")
    assert wish.address("http://[::1]:81/") == Address("::1", 81, "")
    assert wish.address("http://[::1]:81/").base == "http://[::1]:81"
    assert wish.address("http://h").port == 80
