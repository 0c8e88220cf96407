"""As test_planted_bugs, for what the core does about workers that die and models that change."""

from __future__ import annotations

import pytest

from gateway.scheduling import blame, placement, watch
from gateway.scheduling.blame import Blame
from gateway.scheduling.crew import Crew
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.ledger import free_slot
from gateway.scheduling.line import Line
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.profile import Profile
from gateway.scheduling.restarts import ChildState, Restarts
from gateway.scheduling.roster import Roster
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import Priority, Role, Stage
from gateway.scheduling.watch import Watch
from shm.arena import SlotArena
from shm.wire import ItemStatus
from tests.support.planted import Bugs, lenient_move

bug = Bugs()

# Blame


@bug("shares a batch")
def suspects_run_together(patch):
    def queue_of(self, ticket):
        return self.ready if ticket.priority == Priority.REALTIME else self.ready_batch

    patch.setattr(Line, "queue_of", queue_of)


@bug("")
def the_staged_batch_is_blamed(patch):
    lost = Crew.worker_lost

    def worker_lost(self, index, now_ns, **named):
        for batch in self.worker(index).batches:
            batch.started_ns = 1
        lost(self, index, now_ns, **named)

    patch.setattr(Crew, "worker_lost", worker_lost)


@bug("", faults=("worker_device",))
def the_batch_behind_a_lost_device_is_blamed(patch):
    gave_up = Crew._gave_up

    def gave_up_and_started(self, worker, batch, status, now_ns, **named):
        gave_up(self, worker, batch, status, now_ns, **named)
        for staged in worker.batches:
            staged.started_ns = now_ns

    patch.setattr(Crew, "_gave_up", gave_up_and_started)


@bug("is convicted: False", faults=("worker_poison",))
def a_conviction_forgets_the_digest(patch):
    convict = Blame.convict
    patch.setattr(Blame, "convict", lambda self, ticket, _, now_ns: convict(self, ticket, b"", now_ns))


@bug("is convicted: True", faults=("worker_poison", "changes"))
def a_reload_keeps_the_convictions(patch):
    known = Blame.is_convicted

    def is_convicted(self, line, digest, now_ns):
        return any(digest in digests for digests in self._digests.values()) or known(self, line, digest, now_ns)

    patch.setattr(Blame, "covers", lambda *_: True)
    patch.setattr(Blame, "is_convicted", is_convicted)


@bug("goes on after", faults=("worker_poison",))
def a_client_may_send_any_amount_of_poison(patch):
    patch.setattr(Blame, "check", lambda *_: None)


@bug("after 2 crashes")
def a_crash_is_taken_for_a_kill(patch):
    lost = Crew.worker_lost
    patch.setattr(Crew, "worker_lost", lambda self, index, now_ns, **_: lost(self, index, now_ns))


@bug("is accused of")
def a_kill_is_taken_for_a_crash(patch):
    lost = Crew.worker_lost
    patch.setattr(Crew, "worker_lost", lambda self, index, now_ns, **_: lost(self, index, now_ns, guilty=True))


@bug("after 5 deaths")
def who_is_killed_by_others_runs_for_ever(patch):
    patch.setattr(blame, "DEATHS_MAX", 50)


@bug("is expendable, and runs", faults=("shadow", "worker_crash", "worker_kill"))
def a_copy_runs_again_like_any_other(patch):
    strike = Crew._strike

    def strike_all(self, batch, now_ns, **named):
        for ticket in batch.tickets:
            ticket.expendable = False
        strike(self, batch, now_ns, **named)

    patch.setattr(Crew, "_strike", strike_all)


@bug("shares a batch")
def an_interrupted_batch_goes_on_as_before(patch):
    gave_up = Crew._gave_up

    def give_up_unasked(self, worker, batch, status, now_ns, *, asked):
        gave_up(self, worker, batch, status, now_ns, asked=asked and status is not ItemStatus.INTERRUPTED)

    patch.setattr(Crew, "_gave_up", give_up_unasked)


@bug("wait while")
def suspects_come_last(patch):
    def next_of_all(self, now_ns):
        for worker in placement.takers(self._workers):
            run = self._next_for(worker, now_ns) or self._next_suspect(worker, now_ns)
            if run is not None:
                return run
        return None

    patch.setattr(Dispatcher, "_next", next_of_all)


@bug("wait while")
def a_busy_worker_is_staged_while_suspects_wait(patch):
    def next_of_all(self, now_ns):
        for worker in placement.takers(self._workers):
            run = self._next_suspect(worker, now_ns) or self._next_for(worker, now_ns)
            if run is not None:
                return run
        return None

    patch.setattr(Dispatcher, "_next", next_of_all)


# Hanging


@bug("was to be killed")
def who_closed_its_socket_is_given_work(patch):
    patch.setattr(Scheduler, "gone", lambda *_: None)


@bug("before its time is over")
def a_stopped_worker_is_killed_in_the_midst_of_a_batch(patch):
    def stopped(self, role, index, now_ns):
        child = self.feeder.decoders[index] if role is Role.DECODER else self._crew.worker(index)
        if not child.condemned:
            self._ledger.effects.append(self._watch.kill(role, child, "stopped", self._at(now_ns)))

    patch.setattr(Scheduler, "stopped", stopped)


@bug("was not interrupted")
def hung_workers_are_killed_at_once(patch):
    patch.setattr(WorkerState, "interrupt", lambda *_: False)


@bug("nobody watches")
def an_interrupted_worker_has_all_the_time_in_the_world(patch):
    patch.setattr(placement, "GRACE_NS", 10**10)


@bug("nobody watches whether")
def a_killed_child_is_taken_for_gone(patch):
    patch.setattr(watch, "STUCK_NS", 10**12)


@bug("granted while <", faults=("worker_stuck", "worker_spin", "worker_hang"))
def slots_of_a_stuck_worker_are_given_away(patch):
    overdue = Watch._overdue
    patch.setattr(SlotArena, "move", lenient_move)

    def give_away(self, role, child, now_ns):
        if child.condemned and isinstance(child, WorkerState):
            for batch in child.batches:
                for ticket in batch.tickets:
                    if ticket.stage is Stage.ENDED:
                        free_slot(ticket)
        return overdue(self, role, child, now_ns)

    patch.setattr(Watch, "_overdue", give_away)


@bug("which nobody has", faults=("worker_stuck", "worker_kill", "worker_crash"))
def a_stuck_worker_is_waited_for(patch):
    patch.setattr(ChildState, "is_hopeless", property(lambda self: self.restarts.failing))


# Restarts, memory


@bug("is restarted")
def restarts_are_not_counted(patch):
    died = Restarts.died

    def died_again(self, now_ns, **named):
        self._count_max = 0
        return died(self, now_ns, **named)

    patch.setattr(Restarts, "died", died_again)


@bug("")
def the_circuit_is_never_closed(patch):
    def ready(self, now_ns):
        self._ready_ns = None if self.open_until_ns else now_ns

    patch.setattr(Restarts, "ready", ready)


@bug("did not fit before")
def the_size_that_did_not_fit_is_tried_again(patch):
    patch.setattr(Profile, "cut", lambda self, _: self)


# Changes


@bug("left to do")
def a_retired_worker_leaves_with_work_left(patch):
    patch.setattr(Roster, "is_done", lambda _, worker: not worker.batches)


@bug("batches")
def a_retired_worker_leaves_in_the_midst_of_a_batch(patch):
    patch.setattr(Roster, "is_done", lambda *_: True)


@bug("has nothing to do, and lives")
def a_retired_worker_is_never_seen_off(patch):
    patch.setattr(Crew, "see_off", lambda *_: None)


@bug("or has it no more")
def a_retired_worker_takes_everything(patch):
    retire = Roster.retire

    def retire_and_keep(self, worker, finish):
        profiles = worker.profiles
        retire(self, worker, finish)
        worker.profiles = profiles

    patch.setattr(Roster, "retire", retire_and_keep)


@bug("whose place it takes")
def an_heir_does_not_wait(patch):
    add = Roster.add_worker

    def add_at_once(self, seat, models, now_ns, heir_of=None):
        worker = add(self, seat, models, now_ns, heir_of)
        worker.spawn_at_ns = now_ns
        return worker

    patch.setattr(Roster, "add_worker", add_at_once)


@bug("whose place it takes")
def the_heir_of_an_heir_does_not_wait_for_the_first(patch):
    remove = Roster.remove_worker

    def remove_and_start(self, worker, now_ns):
        heir = worker.heir
        remove(self, worker, now_ns)
        if heir is not None:
            heir.spawn_at_ns = now_ns

    patch.setattr(Roster, "remove_worker", remove_and_start)


@bug("")
def an_heir_is_forgotten(patch):
    remove = Roster.remove_worker

    def remove_alone(self, worker, now_ns):
        worker.heir = None
        remove(self, worker, now_ns)

    patch.setattr(Roster, "remove_worker", remove_alone)


@bug("a closed line takes images")
def a_closed_line_takes_what_comes(patch):
    judge = Scheduler._judge

    def judge_all(self):
        judge(self)
        for line in self.lines:
            line.serving = any(worker.serves(line.index) for worker in self.workers)

    patch.setattr(Scheduler, "_judge", judge_all)


@bug("says otherwise")
def a_line_with_slots_in_use_is_empty(patch):
    patch.setattr(Roster, "is_empty", staticmethod(lambda line: not line.dues))


@pytest.mark.slow
@pytest.mark.parametrize("name", bug.names)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    bug.hunt(name, monkeypatch)
