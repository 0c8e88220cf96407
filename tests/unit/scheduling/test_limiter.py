"""Clients and what they may send: claims from header to end, refusals that leave no trace, a table that stays small."""

from __future__ import annotations

import contextlib
import gc

import pytest

from gateway import errors
from gateway.scheduling.limiter import Limiter, Rule
from gateway.scheduling.ticket import Priority

S = 1_000_000_000
NOW = 100 * S
REALTIME, BATCH = Priority.REALTIME, Priority.BATCH


def claim(limiter, client, priority=REALTIME, now_ns=NOW, deadline_ns=NOW + S):
    return limiter.claim(client, priority, now_ns, deadline_ns)


def served(limiter, client, image_count=1, priority=REALTIME, now_ns=NOW):
    """A whole request, from its headers to its end."""
    found = claim(limiter, client, priority, now_ns)
    try:
        limiter.extend(found, image_count, priority, now_ns, now_ns + S)
        limiter.accept(found, image_count)
    finally:
        limiter.release(found)


def refused(kind, call, retry_after_s, *said):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.retry_after_s == retry_after_s
    for words in said:
        assert words in caught.value.detail


def remaining(client, priority=REALTIME, now_ns=NOW):
    return client.meters[priority].remaining(now_ns)


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "realtime", "batch"),
    [
        (Rule(), None, None),
        (Rule(10.0), (10, 10), (10, 10)),
        (Rule(0.5), (0.5, 1), (0.5, 1)),
        (Rule(2.5), (2.5, 3), (2.5, 3)),
        (Rule(10.0, 30), (10, 30), (10, 30)),
        (Rule(10.0, 30, 5.0), (10, 30), (5, 5)),
        (Rule(10.0, 30, 5.0, 7), (10, 30), (5, 7)),
        (Rule(10.0, 30, 0.0, 7), (10, 30), (10, 7)),
        (Rule(0.0, 0, 5.0), None, (5, 5)),
    ],
)
def test_a_rule_gives_each_class_its_meter(rule, realtime, batch):
    found = [meter and (meter.rate, meter.burst) for meter in rule.meters()]
    assert found == [realtime, batch]


def test_a_rate_is_what_was_written():
    meter, _ = Rule(0.1, 1).meters()
    meter.take(0, 1)
    assert meter.wait_ns(0, 1) == 10 * S


# -- without limits ------------------------------------------------------------------------------------------------


def test_without_limits_nothing_is_kept():
    limiter = Limiter()
    assert not limiter.asks_for_addresses
    client = limiter.address("192.0.2.1", NOW)
    assert client is limiter.address("192.0.2.2", NOW)
    assert not client.limited
    for _ in range(10):
        served(limiter, client, 1000)
    found = claim(limiter, client)
    assert found is claim(limiter, client)
    limiter.revoke(found)
    limiter.release(found)
    assert (client.in_flight, found.image_count, limiter.client_count) == (0, 0, 0)
    assert [(name, tally.accepted, tally.refused) for name, tally in limiter.tallies()] == [("", 10_000, 0)]


# -- rates ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def limiter():
    return Limiter(anonymous=Rule(2.0, 4), keyed={"app": Rule(10.0, 20, 1.0, 2)}, clients_max=100)


def test_over_the_rate_is_refused_with_a_time_that_is_true(limiter):
    client = limiter.address("192.0.2.1", NOW)
    for _ in range(4):
        served(limiter, client)
    refused(errors.RateLimited, lambda: served(limiter, client), 1, "2 realtime images a second", "4 at once")
    served(limiter, client, now_ns=NOW + S)
    assert remaining(client, now_ns=NOW + S) == 1


def test_clients_and_classes_are_counted_apart(limiter):
    one, other = limiter.address("192.0.2.1", NOW), limiter.address("192.0.2.2", NOW)
    served(limiter, one, 4)
    served(limiter, one, 4, BATCH)
    served(limiter, other, 4)
    refused(errors.RateLimited, lambda: served(limiter, one), 2)
    refused(errors.RateLimited, lambda: served(limiter, one, priority=BATCH), 2, "batch images")


def test_a_key_has_its_own_limits(limiter):
    app = limiter.keyed("app")
    served(limiter, app, 20)
    served(limiter, app, 2, BATCH)
    refused(errors.RateLimited, lambda: served(limiter, app, priority=BATCH), 2, "1 batch images a second")
    tallies = dict(limiter.tallies())
    assert (tallies["app"].accepted, tallies["app"].refused, tallies[""].accepted) == (22, 1, 0)


def test_many_images_are_all_or_none(limiter):
    client = limiter.address("192.0.2.1", NOW)
    served(limiter, client, 2)
    refused(errors.RateLimited, lambda: served(limiter, client, 3), 1)
    assert (remaining(client), client.in_flight) == (2, 0)
    served(limiter, client, 2)
    refused(errors.RateLimited, lambda: served(limiter, client, 1), 1)


def test_the_wait_of_many_images_is_for_all_of_them(limiter):
    client = limiter.address("192.0.2.1", NOW)
    served(limiter, client, 3)
    refused(errors.RateLimited, lambda: served(limiter, client, 4), 2)
    refused(errors.RateLimited, lambda: served(limiter, client, 4, now_ns=NOW + S), 1)
    served(limiter, client, 4, now_ns=NOW + 2 * S)


def test_at_the_headers_the_wait_is_for_a_request_like_the_last(limiter):
    """Of four images: one could go after half a second, and would come back in vain."""
    client = limiter.address("192.0.2.1", NOW)
    served(limiter, client, 4)
    refused(errors.RateLimited, lambda: claim(limiter, client), 2)
    served(limiter, client, 4, now_ns=NOW + 2 * S)
    refused(errors.RateLimited, lambda: claim(limiter, client, now_ns=NOW + 2 * S), 2)
    app = limiter.keyed("app")
    served(limiter, app, 20)
    served(limiter, app, 2, BATCH)
    served(limiter, app, 10, now_ns=NOW + S)
    refused(errors.RateLimited, lambda: claim(limiter, app, BATCH, NOW + S // 2), 2, "2 at once")


def test_more_than_ever_conforms_is_another_refusal_and_costs_its_image(limiter):
    client = limiter.address("192.0.2.1", NOW)
    refused(
        errors.PayloadTooLarge, lambda: served(limiter, client, 5), None, "5 images", "4 at once", "several requests"
    )
    assert (remaining(client), client.in_flight) == (3, 0)


def test_a_body_that_names_the_other_class_moves_its_charge(limiter):
    app = limiter.keyed("app")
    found = claim(limiter, app)
    limiter.extend(found, 2, BATCH, NOW, NOW + S)
    assert (remaining(app), remaining(app, BATCH), app.in_flight, found.priority) == (20, 0, 2, BATCH)
    limiter.revoke(found)
    assert (remaining(app), remaining(app, BATCH)) == (20, 2)
    limiter.release(found)


def test_a_move_that_does_not_fit_charges_neither_class(limiter):
    app = limiter.keyed("app")
    served(limiter, app, 2, BATCH)
    found = claim(limiter, app)
    refused(errors.RateLimited, lambda: limiter.extend(found, 1, BATCH, NOW, NOW + S), 1)
    assert (remaining(app), remaining(app, BATCH), app.in_flight) == (20, 0, 1)
    limiter.release(found)
    assert app.in_flight == 0


def test_a_body_may_name_a_class_without_a_limit():
    limiter = Limiter(anonymous=Rule(batch_rate=1.0), clients_max=1)
    client = limiter.address("192.0.2.1", NOW)
    found = claim(limiter, client, BATCH)
    limiter.extend(found, 1000, REALTIME, NOW, NOW + S)
    assert (remaining(client, BATCH), client.in_flight) == (1, 1000)
    limiter.release(found)


def test_what_was_accepted_or_is_over_cannot_be_revoked(limiter):
    client = limiter.address("192.0.2.1", NOW)
    found = claim(limiter, client)
    limiter.accept(found, 1)
    limiter.revoke(found)
    limiter.release(found)
    bad_body = claim(limiter, client)
    limiter.release(bad_body)
    limiter.revoke(bad_body)
    assert (remaining(client), client.in_flight) == (2, 0)


# -- in flight -----------------------------------------------------------------------------------------------------


def test_images_in_flight_are_bounded_and_the_wait_ends_with_a_deadline():
    limiter = Limiter(anonymous=Rule(in_flight_max=3), clients_max=10)
    client = limiter.address("192.0.2.1", NOW)
    late = claim(limiter, client, deadline_ns=NOW + 9 * S)
    soon = claim(limiter, client, deadline_ns=NOW + 2 * S + 1)
    limiter.extend(soon, 2, REALTIME, NOW, NOW + 4 * S)
    assert client.in_flight == 3
    refused(errors.RateLimited, lambda: claim(limiter, client), 4, "3 images in flight")
    refused(errors.RateLimited, lambda: claim(limiter, client, now_ns=NOW + 5 * S), 1)  # it is about to end
    limiter.release(soon)
    found = claim(limiter, client)
    refused(errors.RateLimited, lambda: limiter.extend(found, 3, REALTIME, NOW, NOW + S), 9)
    limiter.extend(found, 2, REALTIME, NOW, NOW + S)
    refused(errors.PayloadTooLarge, lambda: limiter.extend(found, 4, REALTIME, NOW, NOW + S), None, "3 at once")
    limiter.release(found)
    limiter.release(late)
    assert (client.in_flight, client.claims) == (0, {})


def test_the_longest_wait_of_all_limits_is_told():
    limiter = Limiter(anonymous=Rule(1.0, 1, in_flight_max=1), clients_max=10, rate_max=0.2)
    client = limiter.address("192.0.2.1", NOW)
    found = claim(limiter, client, deadline_ns=NOW + 3 * S)
    refused(errors.RateLimited, lambda: claim(limiter, client), 5, "1 realtime images a second")
    refused(errors.RateLimited, lambda: claim(limiter, client, now_ns=NOW + 2 * S), 3, "in flight")
    limiter.release(found)
    refused(errors.Overloaded, lambda: claim(limiter, client, now_ns=NOW + 2 * S), 3)
    claim(limiter, client, now_ns=NOW + 5 * S)


# -- everybody -----------------------------------------------------------------------------------------------------


def test_the_rate_of_everybody_is_no_client_s_fault():
    limiter = Limiter(anonymous=Rule(10.0, 10), clients_max=10, rate_max=0.5, rate_burst_max=2)
    one, other = limiter.address("192.0.2.1", NOW), limiter.address("192.0.2.2", NOW)
    served(limiter, one, 2)
    refused(errors.Overloaded, lambda: claim(limiter, other), 2, "the server")
    assert remaining(other) == 10
    refused(errors.PayloadTooLarge, lambda: served(limiter, other, 3, now_ns=NOW + 4 * S), None, "2 at once")


def test_the_rate_of_everybody_holds_for_clients_without_a_limit():
    limiter = Limiter(rate_max=1.0)
    client = limiter.address("192.0.2.1", NOW)
    found = claim(limiter, client)
    assert (client.in_flight, client.claims) == (1, {})
    refused(errors.Overloaded, lambda: claim(limiter, client), 1)
    limiter.revoke(found)
    limiter.release(found)
    served(limiter, client)


# -- the table -----------------------------------------------------------------------------------------------------


def test_an_address_keeps_its_entry_while_it_has_something_to_remember():
    limiter = Limiter(anonymous=Rule(1.0, 2), clients_max=2)
    first = limiter.address("a", NOW)
    served(limiter, first, 2)
    second = limiter.address("b", NOW)
    held = claim(limiter, second)
    shared = limiter.address("c", NOW)
    assert shared is limiter.address("d", NOW)
    assert limiter.address("a", NOW) is first
    assert limiter.address("b", NOW) is second
    # The first is full again; the second is not over.
    third = limiter.address("c", NOW + 2 * S)
    assert third not in (first, second, shared)
    assert limiter.address("b", NOW + 2 * S) is second
    assert limiter.client_count == 2
    limiter.release(held)
    fresh = limiter.address("a", NOW + 2 * S)
    assert fresh is not first
    assert remaining(fresh, now_ns=NOW + 2 * S) == 2


def test_newcomers_without_room_share_one_limit():
    limiter = Limiter(anonymous=Rule(1.0, 2), clients_max=1)
    served(limiter, limiter.address("a", NOW))
    served(limiter, limiter.address("b", NOW))
    served(limiter, limiter.address("c", NOW))
    refused(errors.RateLimited, lambda: served(limiter, limiter.address("d", NOW)), 1)
    served(limiter, limiter.address("a", NOW))


def test_entries_that_remember_nothing_go_as_others_come():
    limiter = Limiter(anonymous=Rule(10.0, 1), clients_max=1000)
    for number in range(1000):
        served(limiter, limiter.address(f"a{number}", NOW))
    assert limiter.client_count == 1000
    for number in range(500):
        limiter.address(f"b{number}", NOW + S)
    assert limiter.client_count <= 501


@pytest.mark.slow
def test_a_hundred_thousand_addresses_take_no_more_room_than_there_is():
    limiter = Limiter(anonymous=Rule(0.001, 1, in_flight_max=4), clients_max=1000)

    def come(first, last):
        for number in range(first, last):
            client = limiter.address(f"192.0.2.{number}", NOW)
            with contextlib.suppress(errors.RateLimited):
                served(limiter, client)
            assert limiter.client_count <= 1000

    come(0, 2000)
    gc.collect()
    before = len(gc.get_objects())
    come(2000, 100_000)
    gc.collect()
    assert limiter.client_count == 1000
    assert len(gc.get_objects()) < before + 100
    # Whoever was known before is counted as exactly as before.
    refused(errors.RateLimited, lambda: served(limiter, limiter.address("192.0.2.999", NOW)), 1000)
