from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling import blame
from gateway.scheduling.blame import Blame, Verdict
from tests.support.core import NOW, S, line, ticket

TEN_MINUTES = 600 * S


def accused(of=None, client: str | None = None):
    one = ticket(1, of or line())
    one.client = client
    book = Blame()
    book.strike(one, crashed=True)
    book.strike(one, crashed=True)
    return book, one


def convicted(book: Blame, client: str, *, count: int, at: int = NOW, first: int = 0) -> None:
    of = line()
    for number in range(first, first + count):
        one = ticket(number, of)
        one.client = client
        book.accused.append(one)
        book.convict(one, b"%s %d" % (client.encode(), number), at)


def test_a_second_crash_is_proof():
    book, one = Blame(), ticket(1, line())

    assert book.strike(one, crashed=True) is Verdict.AGAIN
    assert book.strike(one, crashed=True) is Verdict.ACCUSED
    assert book.accused == [one]


def test_kills_from_outside_prove_nothing_but_are_not_tried_for_ever():
    book, one = Blame(), ticket(1, line())

    verdicts = [book.strike(one, crashed=False) for _ in range(5)]

    assert verdicts == [Verdict.AGAIN] * 4 + [Verdict.LOST]
    assert not book.accused


def test_one_crash_among_kills_counts_once():
    book, one = Blame(), ticket(1, line())
    for _ in range(3):
        book.strike(one, crashed=False)
    assert book.strike(one, crashed=True) is Verdict.AGAIN

    assert book.strike(one, crashed=False) is Verdict.LOST


def test_convicted_pixels_are_refused_for_ten_minutes():
    book, one = accused()
    assert not book.covers(one.line)

    book.convict(one, b"pixels", NOW)

    assert not book.accused
    assert book.covers(one.line)
    assert book.is_convicted(one.line, b"pixels", NOW + TEN_MINUTES - 1)
    assert not book.is_convicted(one.line, b"others", NOW)
    assert not book.is_convicted(one.line, b"pixels", NOW + TEN_MINUTES)
    assert not book.covers(one.line), "no digests need to be made any more"


def test_another_model_may_run_the_same_pixels():
    book, one = accused(line(0))
    book.convict(one, b"pixels", NOW)

    assert not book.is_convicted(line(1), b"pixels", NOW)
    book.forget(one.line)
    assert not book.covers(one.line)


def test_pixels_that_are_convicted_again_are_refused_for_longer():
    book, one = accused()
    book.convict(one, b"old", NOW)
    for digest, at in ((b"pixels", NOW + 1 * S), (b"old", NOW + 5 * S)):
        book.accused.append(one)
        book.convict(one, digest, at)

    later = NOW + TEN_MINUTES + 2 * S
    assert [book.is_convicted(one.line, digest, later) for digest in (b"pixels", b"old")] == [False, True]


def test_the_oldest_conviction_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(blame, "DIGESTS_MAX", 2)
    book, one = accused()
    for number in range(3):
        book.accused = [one]
        book.convict(one, b"%d" % number, NOW + number)

    assert [book.is_convicted(one.line, b"%d" % number, NOW + 3) for number in range(3)] == [False, True, True]


def test_a_client_whose_images_were_convicted_three_times_is_refused():
    book = Blame()
    book.check("ada", NOW)
    convicted(book, "ada", count=2, at=NOW)
    book.check("ada", NOW)
    convicted(book, "ada", count=1, at=NOW + 10 * S, first=2)

    with pytest.raises(errors.RateLimited, match="3 images") as caught:
        book.check("ada", NOW + 11 * S + 1)
    assert caught.value.retry_after_s == 589, "until the first of the three is ten minutes ago"
    book.check("bob", NOW)
    book.check(None, NOW)
    book.check("ada", NOW + TEN_MINUTES)


def test_nobody_is_remembered_without_a_name():
    book, one = accused(client=None)
    book.convict(one, b"pixels", NOW)

    book.check(None, NOW)
    assert not book._clients


def test_the_client_that_was_quiet_longest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(blame, "CLIENTS_MAX", 2)
    book = Blame()
    for client in ("ada", "bob", "ada"):
        convicted(book, client, count=3)
    convicted(book, "cid", count=3)

    book.check("bob", NOW)
    for client in ("ada", "cid"):
        with pytest.raises(errors.RateLimited):
            book.check(client, NOW)
