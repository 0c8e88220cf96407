from __future__ import annotations

import pytest

from gateway.errors import Overloaded, UndecodableImage
from gateway.scheduling.feeder import (
    BASE_COST_NS,
    CAUTION,
    DEPTH_NS,
    LARGE_NS,
    REFILL_NS,
    SLIP_NS_MAX,
    SLIP_ODDS,
    SLIP_STEP_NS,
    SMALL_MEMORY_NS,
    Feeder,
)
from gateway.scheduling.ticket import TENSOR
from tests.support.core import MS, NOW, ROOM, Core, S, line


def large_core(**named) -> Core:
    """Bodies for photos of 2 MB."""
    core = Core(**named)
    core.bodies.__init__(1 << 26)
    return core


def test_an_image_costs_a_base_and_its_bytes():
    assert Feeder(1, frame_count_max=8, hang_ns=1).estimate_ns(10_000) == BASE_COST_NS + 80_000


def test_a_decoder_is_given_four_milliseconds_of_work():
    core = Core(line(slot_count=16))
    core.submit(count=9, size=60_000)  # 0.54 ms each

    assert core.do(NOW) == ["send 0: 1 2 3 4 5 6 7 8"]
    assert core.s.feeder.decoders[0].cost_ns == 8 * 540_000 > DEPTH_NS


def test_it_is_given_at_least_one_image_however_large():
    core = large_core()
    core.submit(size=3_000_000)

    assert core.do(NOW) == ["send 0: 1"]


def test_the_next_ones_come_together_when_little_is_left():
    core = Core(line(slot_count=16))
    core.submit(count=12, size=60_000)
    core.do(NOW)
    core.s.workers[0].ready = False
    for number in range(1, 6):
        core.decoded(number, at=NOW + 1 * MS)
        assert core.do(NOW + 1 * MS) == []

    core.decoded(6, at=NOW + 2 * MS)

    assert core.s.feeder.decoders[0].cost_ns == 2 * 540_000 < REFILL_NS
    assert core.do(NOW + 2 * MS) == ["send 0: 9 10 11 12"]


def test_work_is_spread_over_decoders():
    core = Core(decoders=2)
    core.submit(count=4, size=60_000)

    assert core.do(NOW) == ["send 0: 1 3", "send 1: 2 4"]


def test_frames_are_bounded():
    core = Core(line(slot_count=16))
    core.s.feeder.frame_count_max = 3
    core.submit(count=8, size=100)

    assert core.do(NOW) == ["send 0: 1 2 3", "send 0: 4 5 6", "send 0: 7 8"]


def test_a_free_slot_is_the_admission():
    core = Core(line(slot_count=2))
    tickets = core.submit(count=3)
    assert core.do(NOW) == ["send 0: 1 2"]
    assert core.do(NOW) == []

    core.s.cancel(tickets[0], NOW)  # the decoder still holds its slot
    assert core.do(NOW) == []

    core.decoded(1, at=NOW)
    assert core.do(NOW) == ["send 0: 3"]


def test_another_model_with_slots_goes_first():
    core = Core(line(0, slot_count=1), line(1, slot_count=1))
    core.submit(count=2, model=0)
    core.submit(model=1)

    assert core.do(NOW) == ["send 0: 1 3"]


def test_what_is_due_first_is_decoded_first_whatever_its_class():
    core = Core()
    core.submit(deadline_ns=NOW + 900 * MS)
    core.submit(priority=1, deadline_ns=NOW + 800 * MS)
    core.submit(deadline_ns=NOW + 100 * MS)

    assert core.do(NOW) == ["send 0: 3 2 1"]


def test_tensors_need_a_slot_and_no_decoder():
    core = Core(line(slot_count=2))
    core.s.feeder.decoders[0].ready = False
    core.submit(count=3, encoding=TENSOR)

    assert core.do(NOW) == ["fill 1", "fill 2"]


def test_images_wait_while_no_decoder_is_ready():
    core = Core()
    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)
    core.submit()

    assert core.do(NOW) == ["spawn decoder 0"]
    core.s.decoder_ready(0, NOW)
    assert core.do(NOW) == ["send 0: 1"]


def test_one_decoder_stays_free_of_large_photos_while_small_ones_are_about():
    core = large_core(decoders=2)
    core.submit(size=100)
    assert core.do(NOW) == ["send 0: 1"]
    core.decoded(1, at=NOW)
    core.submit(count=2, size=2_000_000, deadline_ns=NOW + 60 * S)
    assert core.do(NOW) == ["run 0: 1 at 1, idle", "send 1: 2"], "the spare one takes the first"

    core.submit(size=100)
    assert core.do(NOW) == ["send 0: 4"]

    later = NOW + SMALL_MEMORY_NS
    core.decoded(4, decoder=0, at=later - 1)
    assert "send 0: 3" not in core.do(later - 1)
    assert "send 0: 3" in core.do(later)


def test_tiny_images_leave_the_spare_decoder_alone_until_the_others_are_full():
    core = Core(line(slot_count=64, queue_max=64), decoders=2)
    core.submit(count=20, size=20_000)  # 0.22 ms each

    assert core.do(NOW) == [
        "send 0: 1 2 3 4 5 6 7 8",
        "send 0: 9 10 11 12 13 14 15 16",
        "send 0: 17 18 19",
        "send 1: 20",
    ]
    core.submit(count=1, size=20_000)
    core.s.workers[0].ready = False
    for number in range(1, 6):
        core.decoded(number, at=NOW + 1 * MS)
    assert core.do(NOW + 1 * MS) == [], "the first decoder has room, and is not hungry yet"


def test_medium_images_go_to_every_decoder():
    core = Core(decoders=2)
    core.submit(count=2, size=60_000)  # 0.54 ms each

    assert core.do(NOW) == ["send 0: 1", "send 1: 2"]


def test_a_single_decoder_takes_everything():
    core = large_core()
    core.submit(size=100)
    core.submit(size=2_000_000, deadline_ns=NOW + 500 * MS)

    assert core.do(NOW) == ["send 0: 2"]
    assert core.s.feeder.decoders[0].large_count == 1
    core.decoded(2, at=NOW + 1)
    assert core.s.feeder.decoders[0].large_count == 0


def test_estimates_follow_what_is_measured_within_bounds():
    core = large_core()
    feeder = core.s.feeder
    ticket = core.submit(size=100_000)[0]
    assert ticket.cost_ns == 860_000

    ticket.decode_ns = BASE_COST_NS + 20 * 100_000
    for _ in range(400):
        feeder.learn(ticket)
    assert feeder.estimate_ns(100_000) == pytest.approx(2_060_000, rel=0.01)

    ticket.decode_ns = 10**12
    for _ in range(1000):
        feeder.learn(ticket)
    assert feeder.estimate_ns(1_000_000) == pytest.approx(60_060_000, rel=0.01)

    ticket.decode_ns = 0
    for _ in range(1000):
        feeder.learn(ticket)
    assert feeder.estimate_ns(1_000_000) == pytest.approx(1_060_000, rel=0.01)


def test_an_empty_image_teaches_without_dividing_by_zero():
    core = Core()
    core.submit(size=0)
    core.do(NOW)

    core.decoded(1, at=NOW)

    assert core.do(NOW) == ["run 0: 1 at 1, idle"]


def test_refused_images_teach_nothing():
    core = Core()
    before = core.s.feeder.estimate_ns(1_000_000)
    core.submit(size=100_000)
    core.do(NOW)

    core.decoded(1, at=NOW, refusal=UndecodableImage("not an image"), decode_ns=20_000)

    assert core.s.feeder.estimate_ns(1_000_000) == before


def test_decoding_is_expected_behind_all_that_was_accepted():
    core = large_core(decoders=2)
    feeder = core.s.feeder
    assert feeder.expected_ns(540_000, 1, NOW) == CAUTION * (270_000 + 540_000)

    core.submit(count=4, size=60_000)
    assert feeder.load_ns == 4 * 540_000
    assert feeder.expected_ns(540_000, 1, NOW) == CAUTION * (5 * 270_000 + 540_000)
    assert feeder.expected_ns(0, 3, NOW) == 0, "tensors wait for nobody"


def test_large_photos_are_expected_without_the_spare_decoder():
    feeder = large_core(decoders=2).s.feeder

    assert feeder.expected_ns(2 * LARGE_NS + 4, 2, NOW) == CAUTION * (3 * LARGE_NS + 6)
    assert feeder.expected_ns(2 * LARGE_NS, 2, NOW) == CAUTION * 2 * LARGE_NS


def test_decoding_is_expected_later_by_what_it_slipped_lately():
    core = Core()
    core.submit(size=60_000)
    core.do(NOW)
    assert core.tickets[0].expected_ns == NOW + 1_620_000

    core.decoded(1, at=NOW + 5 * MS)

    assert core.s.feeder.slip_ns(NOW + 5 * MS) == SLIP_STEP_NS == 2 * MS
    assert core.s.feeder.expected_ns(540_000, 1, NOW + 5 * MS) == 3_620_000


def slipped(*slips_ms: float, at: int = NOW) -> Core:
    """Images were decoded so much later than expected, one after the other, all just now."""
    core = Core(line(**ROOM))
    for number, ms in enumerate(slips_ms, 1):
        core.submit(size=60_000, at=at)
        core.do(at)
        core.tickets[-1].expected_ns = at - int(ms * MS)
        core.decoded(number, at=at)
    return core


def test_a_slip_fades_to_nothing_in_a_second():
    feeder = slipped(6).s.feeder

    seen = [feeder.slip_ns(NOW + ms * MS) for ms in (0, 250, 500, 999, 1000, 5000)]
    assert seen == [2 * MS, 1_500_000, 1 * MS, 2_000, 0, 0]


def test_a_slip_grows_in_steps_until_images_are_no_later():
    seen = [slipped(*[6] * count).s.feeder.slip_ns(NOW) for count in (1, 2, 3, 4, 5)]

    assert seen == [2 * MS, 4 * MS, 6 * MS, 5_990_000, 7_990_000]


def test_two_hundred_images_that_are_no_later_take_a_step_back():
    assert SLIP_ODDS == 200
    assert slipped(6, 6, *[1] * 200).s.feeder.slip_ns(NOW) == 2 * MS
    assert slipped(-3, 0).s.feeder.slip_ns(NOW) == 0, "never below nothing"


def test_a_slip_grows_from_what_it_has_faded_to():
    core = slipped(6)
    later_ns = NOW + 500 * MS
    core.submit(size=60_000, at=later_ns)
    core.do(later_ns)
    core.tickets[-1].expected_ns = later_ns - 6 * MS
    core.decoded(2, at=later_ns)

    assert core.s.feeder.slip_ns(later_ns) == 3 * MS


def test_a_slip_is_bounded():
    assert slipped(*[500] * 60).s.feeder.slip_ns(NOW) == SLIP_NS_MAX == 100 * MS


def test_a_slip_is_over_when_its_time_is_over():
    core = Core(line(deadline_ns=50 * MS))
    core.submit(deadline_ns=NOW + 100 * MS)
    core.do(NOW)
    core.decoded(1, at=NOW + 60 * MS)  # once, one image was late

    def accepts(at: int) -> bool:
        core.do(at)
        try:
            return bool(core.submit(at=at, deadline_ns=at + 50 * MS))
        except Overloaded:
            return False

    assert any(accepts(NOW + 1 * S + place * 20 * MS) for place in range(250)), "five seconds of asking"


def test_a_decoder_s_death_is_no_slip():
    core = Core()
    core.submit(count=2, size=60_000)
    core.do(NOW)
    core.s.decoder_lost(0, core.tickets[0].number, guilty=True, now_ns=NOW)
    core.do(NOW)
    core.s.decoder_ready(0, NOW + 90 * MS)
    core.do(NOW + 90 * MS)
    core.decoded(2, at=NOW + 91 * MS)

    assert core.s.feeder.slip_ns(NOW + 91 * MS) == 0


def test_an_image_whose_decoder_died_is_no_slip():
    core = Core()
    core.submit(size=60_000)
    core.do(NOW)
    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)
    core.do(NOW)
    core.s.decoder_ready(0, NOW + 90 * MS)
    core.do(NOW + 90 * MS)
    core.decoded(1, at=NOW + 91 * MS)

    assert core.s.feeder.slip_ns(NOW + 91 * MS) == 0


def test_what_a_lost_decoder_held_is_work_still_to_be_done():
    core = Core(decoders=2)
    core.submit(count=2, size=60_000)
    core.do(NOW)

    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)

    assert core.s.feeder.load_ns == 2 * 540_000
    assert core.s.feeder.ready_count == 1
    assert core.do(NOW) == ["spawn decoder 0", "send 1: 1"]


def test_large_is_eight_milliseconds():
    core = large_core()
    small, large = (core.submit(size=size)[0] for size in (992_500, 992_501))

    assert small.cost_ns == LARGE_NS
    assert len(core.lines[0].small) == 1
    assert large.cost_ns > LARGE_NS
    assert core.lines[0].waiting_count == 2
