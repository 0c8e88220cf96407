"""The simulator is worth what it finds: each planted bug must be found, by the checker that is meant to find it."""

from __future__ import annotations

import pytest

from gateway.scheduling import batcher, blame, placement, scheduler
from gateway.scheduling.batcher import decide, take
from gateway.scheduling.crew import Crew
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.feeder import Feeder
from gateway.scheduling.ledger import Ledger
from gateway.scheduling.line import Line
from gateway.scheduling.plan import Plan
from gateway.scheduling.profile import Profile
from gateway.scheduling.restarts import FAILING_COUNT, ChildState, Restarts
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import TENSOR, Stage
from gateway.scheduling.watch import Watch
from shm.arena import SlotArena
from tests.support.planted import Bugs, lenient_move

bug = Bugs()


@bug("granted while <")
def slot_freed_on_cancel_while_held(patch):
    end = Ledger.end
    patch.setattr(SlotArena, "move", lenient_move)
    patch.setattr(Ledger, "end", lambda self, ticket, returned=False: end(self, ticket, returned=True))


@bug("past a deadline")
def running_tickets_never_expire(patch):
    def expire(self, now_ns):
        while (ticket := self._deadlines.peek()) is not None and ticket.deadline_ns <= now_ns:
            if ticket.stage is Stage.RUNNING:
                self._deadlines.pop()
                self._deadlines._live += 1
            else:
                self.give_up(ticket)

    patch.setattr(Ledger, "expire", expire)


@bug("a senseless reply is believed")
def any_reply_is_believed(patch):
    done = Crew.batch_done

    def batch_done(self, index, number, statuses, now_ns):
        batches = self.worker(index).batches
        if batches:
            number, statuses = batches[0].number, statuses[: len(batches[0].tickets)]
        return done(self, index, number, statuses, now_ns)

    patch.setattr(Crew, "batch_done", batch_done)


@bug("")
def batch_of_a_lost_worker_forgotten(patch):
    lost = Crew.worker_lost

    def worker_lost(self, index, now_ns, **named):
        self.worker(index).batches.clear()
        lost(self, index, now_ns, **named)

    patch.setattr(Crew, "worker_lost", worker_lost)


@bug("timer is set")
def deadline_missing_from_the_timer(patch):
    def wake_at_ns(self):
        times = (self._dispatcher.wake_ns, self._watch.next_ns)
        return min(time for time in times if time is not None)

    patch.setattr(Scheduler, "wake_at_ns", wake_at_ns)


@bug("decoded from freed memory")
def body_freed_while_it_is_decoded(patch):
    end = Ledger.end

    def end_and_let_go(self, ticket, *, returned=False):
        end(self, ticket, returned=returned)
        ticket.let_go_of_body()

    patch.setattr(Ledger, "end", end_and_let_go)


@bug("")
def batch_of_a_lost_worker_requeued_twice(patch):
    lost = Crew.worker_lost

    def worker_lost(self, index, now_ns, **named):
        batches = list(self.worker(index).batches)
        lost(self, index, now_ns, **named)
        for batch in batches:
            for ticket in batch.tickets:
                if ticket.stage is Stage.QUEUED:
                    ticket.line.enqueue(ticket, now_ns)

    patch.setattr(Crew, "worker_lost", worker_lost)


@bug("")
def hung_workers_not_watched(patch):
    patch.setattr(placement, "HANG_FACTOR", 10**9)


@bug("")
def hung_decoders_not_watched(patch):
    hold = Feeder._hold

    def hold_for_ever(self, decoder, ticket, now_ns):
        hold(self, decoder, ticket, now_ns)
        decoder.due_ns = 0

    patch.setattr(Feeder, "_hold", hold_for_ever)


@bug("")
def window_timer_forgotten(patch):
    def decide_and_forget(line, profile, start_ns, now_ns):
        decision = decide(line, profile, start_ns, now_ns)
        return None if isinstance(decision, int) else decision

    patch.setattr(batcher, "decide", decide_and_forget)


@bug("too late", faults=("worker_hang", "worker_kill", "worker_spin"))
def expired_head_is_run_anyway(patch):
    def take_late(line, profile, free_ns, way, sent_ns):
        return take(line, profile, -(10**15), way, -(10**15))

    patch.setattr(batcher, "late_head", lambda *_: None)
    patch.setattr(batcher, "take", take_late)


@bug("latest start")
def latest_start_is_the_deadline(patch):
    send = Dispatcher._send

    def send_lax(self, *args):
        run = send(self, *args)
        run.batch.latest_start_ns += run.batch.expected_ns
        return run

    patch.setattr(Dispatcher, "_send", send_lax)


@bug("too late", faults=("worker_hang", "worker_kill", "worker_spin"))
def near_deadline_of_a_lower_class_rides_along(patch):
    def all_of_them(line, profile, free_ns, sent_ns, tickets):
        return tickets, profile.size_above(len(tickets))

    patch.setattr(batcher, "_most_in_time", all_of_them)


@bug("overtakes")
def classes_ignored(patch):
    patch.setattr(Line, "queue_of", lambda self, ticket: self.ready if ticket.number % 2 else self.ready_batch)


@bug("a third batch")
def three_batches_at_once(patch):
    patch.setattr(placement, "BATCHES_MAX", 3)


@bug("tickets at size")
def more_tickets_than_rows(patch):
    def take_narrow(line, profile, *args):
        tickets, _ = take(line, profile, *args)
        return tickets, profile.sizes[0]

    patch.setattr(batcher, "take", take_narrow)


@bug("after 2 crashes")
def run_until_it_works(patch):
    patch.setattr(blame, "CRASHES_MAX", 5)


@bug("a frame of")
def frames_without_bound(patch):
    feed = Feeder.feed

    def feed_whole(self, lines, now_ns):
        bound, self.frame_count_max = self.frame_count_max, 1000
        try:
            return feed(self, lines, now_ns)
        finally:
            self.frame_count_max = bound

    patch.setattr(Feeder, "feed", feed_whole)


@bug("fourth decoder")
def a_poisonous_image_goes_round(patch):
    patch.setattr(scheduler, "DECODE_ATTEMPTS_MAX", 50)


@bug("without a cause")
def bystanders_are_blamed(patch):
    patch.setattr(scheduler, "DECODE_ATTEMPTS_MAX", 1)


@bug("was cancelled and is answered", faults=("cancel", "lazy_pump", "worker_failed"))
def answer_follows_a_cancel(patch):
    def cancel(self, ticket):
        if ticket.stage < Stage.DONE:
            self.end(ticket)
        elif ticket.stage is Stage.DONE:
            self.release(ticket)

    patch.setattr(Ledger, "cancel", cancel)


@bug("is refused beside", faults=("worker_crash", "worker_start_death", "worker_kill"))
def failing_for_ever(patch):
    patch.setattr(Restarts, "failing", property(lambda self: self.in_a_row >= FAILING_COUNT))


@bug("was to be killed")
def a_condemned_child_is_believed(patch):
    condemn = ChildState.condemn

    def condemn_and_believe(self, now_ns, *, broken):
        ready = self.ready
        condemn(self, now_ns, broken=broken)
        self.ready = ready

    patch.setattr(ChildState, "condemn", condemn_and_believe)


@bug("an image waits beside")
def slot_of_a_late_head_not_fed(patch):
    def advance(self, now_ns):
        now_ns = self._at(now_ns)
        self._ledger.expire(now_ns)
        effects = self._ledger.effects
        self._look(now_ns)
        effects += self.feeder.feed(self.lines, now_ns)
        effects += self._dispatcher.dispatch(now_ns)
        if effects:
            self._watch.work_sent(now_ns)
        self._ledger.effects = []
        return effects

    patch.setattr(Scheduler, "advance", advance)


@bug("nobody watches")
def hangs_are_noticed_by_chance(patch):
    patch.setattr(Watch, "work_sent", lambda *_: None)


@bug("the timer is set for now or earlier")
def the_timer_spins(patch):
    wake_at_ns = Scheduler.wake_at_ns
    patch.setattr(Scheduler, "wake_at_ns", lambda self: wake_at_ns(self) and self._now_ns)


@bug("slots leak")
def outputs_are_never_released(patch):
    release = Scheduler.release
    patch.setattr(Scheduler, "release", lambda self, ticket: release(self, ticket) if ticket.number % 50 else None)


@bug("")
def image_of_a_lost_decoder_forgotten(patch):
    lost = Feeder.lost

    def lost_and_forgotten(self, decoder, now_ns):
        return lost(self, decoder, now_ns)[1:]

    patch.setattr(Feeder, "lost", lost_and_forgotten)


@bug("goes to a decoder")
def tensors_are_decoded(patch):
    enqueue = Feeder.enqueue

    def enqueue_as_image(self, ticket):
        enqueue(self, ticket)
        if ticket.encoding == TENSOR:
            ticket.encoding = 0

    patch.setattr(Feeder, "enqueue", enqueue_as_image)


@bug("without any fault", calm=True)
def everything_is_promised(patch):
    patch.setattr(Plan, "lateness_ns", lambda *_: 0)


@bug("without any fault", calm=True)
def promises_are_not_looked_at_again(patch):
    patch.setattr(Dispatcher, "_keeps_promises", lambda *_: True)


@bug("without any fault", calm=True)
def other_models_do_not_count(patch):
    patch.setattr(Plan, "_has_room", lambda *_: False)
    patch.setattr(
        Plan, "_together_ns", lambda self, now_ns, _, line, *rest: self._alone_ns(line, *rest, now_ns, growing=True)
    )
    patch.setattr(Plan, "slack_ns", lambda *_: 1)


@bug("without any fault", calm=True)
def decoding_takes_no_time(patch):
    patch.setattr(Feeder, "expected_ns", lambda *_: 0)


@bug("", calm=True)
def batches_are_expected_too_early(patch):
    refresh = Profile.refresh

    def refresh_boldly(self, *args):
        refresh(self, *args)
        self.times_ns = {size: time_ns // 2 for size, time_ns in self.times_ns.items()}
        self.by_count = [time_ns // 2 for time_ns in self.by_count]

    patch.setattr(Profile, "refresh", refresh_boldly)


@pytest.mark.slow
@pytest.mark.parametrize("name", bug.names)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    bug.hunt(name, monkeypatch)
