"""The lane protocol keeps its promises over a link that keeps none."""

from __future__ import annotations

import random
from collections import deque
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared import lanes
from tests.unit.lane_model import Crash, World

CRASHES: Final = (None, None, Crash.BEFORE, Crash.AFTER)


class Storm(RuleBasedStateMachine):
    """Anything may happen to any message and to either side, at any time; then the sky clears."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(window=4)

    @rule(size=st.integers(1, 4), told=st.booleans())
    def append(self, size: int, told: bool) -> None:
        self.world.append(size, told=told)

    @rule(most=st.integers(1, 9), meanwhile=st.none() | st.integers(0, 9))
    def send(self, most: int, meanwhile: int | None) -> None:
        answers = len(self.world.answers)
        self.world.send(most, meanwhile=meanwhile % answers if meanwhile is not None and answers else None)

    @precondition(lambda self: self.world.batches)
    @rule(data=st.data(), again=st.booleans(), crash=st.sampled_from(CRASHES))
    def batch_arrives(self, data: st.DataObject, again: bool, crash: Crash | None) -> None:
        index = data.draw(st.integers(0, len(self.world.batches) - 1))
        self.world.take_batch(index, again=again, crash=crash)

    @precondition(lambda self: self.world.answers)
    @rule(data=st.data(), again=st.booleans(), crash=st.sampled_from(CRASHES))
    def answer_arrives(self, data: st.DataObject, again: bool, crash: Crash | None) -> None:
        index = data.draw(st.integers(0, len(self.world.answers) - 1))
        self.world.take_answer(index, again=again, crash=crash)

    @precondition(lambda self: self.world.batches)
    @rule(data=st.data())
    def batch_is_lost(self, data: st.DataObject) -> None:
        del self.world.batches[data.draw(st.integers(0, len(self.world.batches) - 1))]

    @precondition(lambda self: self.world.answers)
    @rule(data=st.data())
    def answer_is_lost(self, data: st.DataObject) -> None:
        del self.world.answers[data.draw(st.integers(0, len(self.world.answers) - 1))]

    @rule(all_lost=st.booleans())
    def reconnect(self, all_lost: bool) -> None:
        if all_lost:
            self.world.batches.clear()
            self.world.answers.clear()
        self.world.reconnect()

    @rule()
    def sender_restarts(self) -> None:
        self.world.restart_sender()

    @rule()
    def receiver_restarts(self) -> None:
        self.world.restart_receiver()

    @rule(seconds=st.sampled_from([0.1, 3.0, 6.0, 90.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.world.live.generation < 4)
    @rule()
    def a_generation_opens(self) -> None:
        self.world.open_generation()

    @invariant()
    def both_sides_agree_with_the_truth(self) -> None:
        self.world.check()
        assert self.world.regressed is None

    def teardown(self) -> None:
        self.world.settle()
        self.both_sides_agree_with_the_truth()
        for lane, store in self.world.outgoing.items():
            assert [value for _, value in self.world.incoming[lane].records] == store.given
            assert not store.records


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# The same storm from a tape: a hundred times as many steps in the same time


def step(world: World, what: int, which: int) -> None:
    """One step of a schedule: `which` picks the message, the size or the moment."""
    crash = CRASHES[which % 4] if which % 3 == 0 else None
    again = which % 5 == 0
    batch = which % len(world.batches) if world.batches else None
    answer = which % len(world.answers) if world.answers else None
    match what % 16:
        case 0 | 1:
            world.append(1 + which % 4, told=which % 9 != 0)
        case 2 | 3 | 4 | 5:
            world.send(1 + which % 6, meanwhile=answer if which % 4 == 0 else None)
        case 6 | 7 | 8 if batch is not None:
            world.take_batch(batch if which % 2 else 0, again=again, crash=crash)
        case 9 | 10 | 11 if answer is not None:
            world.take_answer(answer if which % 2 else 0, again=again, crash=crash)
        case 12 if batch is not None:
            del world.batches[batch]
        case 13 if answer is not None:
            del world.answers[answer]
        case 14:
            world.wait((0.1, 3.0, 6.0, 90.0)[which % 4])
        case 15:
            match which % 8:
                case 0 | 1 | 2:
                    world.reconnect()
                case 3 | 4:
                    world.restart_sender()
                case 5 | 6:
                    world.restart_receiver()
                case 7 if world.live.generation < 4:
                    world.open_generation()
    world.check()
    assert world.regressed is None


def assert_all_arrived(world: World) -> None:
    for lane, store in world.outgoing.items():
        assert [value for _, value in world.incoming[lane].records] == store.given
        assert not store.records


tapes = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 255)), max_size=80)


@settings(max_examples=400, deadline=None)
@given(tape=tapes, window=st.integers(1, 5), most=st.integers(1, 9))
def test_every_record_is_committed_once_and_in_order(
    tape: list[tuple[int, int]], window: int, most: int
) -> None:
    """Whatever the link and the crashes did, once the link behaves all arrives, soon and exactly once."""
    world = World(window, backlog_window=min(2, window))
    for what, which in tape:
        step(world, what, which)
    world.settle(most)
    world.check()
    assert_all_arrived(world)


def storm(seed: int, steps: int) -> World:
    rng = random.Random(seed)
    window = rng.randint(1, 8)
    world = World(window, backlog_window=min(2, window))
    weather = [rng.expovariate(1) for _ in range(16)]
    for what in rng.choices(range(16), weather, k=steps):
        step(world, what, rng.randrange(256))
    world.settle(rng.randint(1, 20))
    world.check()
    return world


@pytest.mark.parametrize("seed", range(8))
def test_long_storms_end_well(seed: int) -> None:
    """The same over a thousand steps, with hundreds of messages in the link at a time."""
    assert_all_arrived(storm(seed, 1000))


@pytest.mark.soak
def test_many_long_storms_end_well() -> None:
    """The same, for a minute or two."""
    for seed in range(1_000, 1_600):
        assert_all_arrived(storm(seed, 2_000))


# Stores that were put back to an older state


@settings(max_examples=80, deadline=None)
@given(before=tapes, between=tapes, after=tapes)
def test_a_restored_receiver_counts_what_is_missing_and_goes_on(
    before: list[tuple[int, int]], between: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    """With its store put back, a receiver misses exactly what no store has any more, and gets all else."""
    world = World(window=3)
    lane = world.live
    for what, which in before:
        step(world, what, which)
    older = world.incoming[lane].copy()
    for what, which in between:
        step(world, what, which)
    world.restore_receiver(lane, older)
    deleted = world.outgoing[lane].acked
    for what, which in after:
        step(world, what, which)
    for sender, store in zip(world.senders.values(), world.outgoing.values(), strict=True):
        sender.append(store.append([0]))  # the next record of each lane tells of the loss before it
    world.settle()

    received, given = world.incoming[lane], world.outgoing[lane].given
    numbers = [number for number, _ in received.records]
    assert numbers == sorted(set(numbers))
    assert all(given[number - 1] == value for number, value in received.records)
    missing = set(range(1, len(given) + 1)) - set(numbers)
    assert missing <= set(range(older.cursor + 1, deleted + 1))
    books = lanes.Ledger(len(given), received.cursor, received.committed)
    assert (books.missing, books.waiting) == (len(missing), 0)
    assert world.tallies[lane].lost == len(missing)


def test_a_restored_sender_is_found_out() -> None:
    """A receiver that is ahead of the store is an error that asks for a new epoch."""
    sender = lanes.Sender(acked=10, numbered=20)
    with pytest.raises(lanes.JournalRegressed, match=r"has committed 21 records.* only 20.*new epoch"):
        sender.acknowledge(21, now=0.0)


def test_a_restored_sender_is_found_out_though_it_has_numbered_past_the_receiver() -> None:
    """New records under old numbers don't hide it: they were not sent, so the receiver has others."""
    world = World()
    for _ in range(10):
        world.append(1)
    older = world.outgoing[world.live].copy()
    for _ in range(90):
        world.append(1)
    world.settle()
    world.restore_sender(world.live, older)
    for _ in range(190):
        world.append(1)
    world.settle(most=1)
    assert world.regressed == world.live
    assert len(world.outgoing[world.live].records) == 200, "nothing may be deleted on such an answer"


def test_a_sender_that_died_takes_the_answers_to_what_it_had_sent() -> None:
    """After a restart, an acknowledgement of what was sent before is no sign of an older store."""
    sender = lanes.Sender(acked=3, numbered=9)
    sender.append(12)
    sender.send(lanes.Span(4, 5), now=0.0)
    assert sender.acknowledge(9, now=0.1)
    assert (sender.acked, sender.sent, sender.idle) == (9, 9, True)


# The sender, rule by rule


def sending(batches: int, window: int = lanes.WINDOW, now: float = 0.0) -> lanes.Sender:
    """A sender that has sent so many batches of ten records at `now`, of a hundred such."""
    sender = lanes.Sender(numbered=1000, window=window)
    send(sender, batches, now)
    return sender


def send(sender: lanes.Sender, batches: int, now: float) -> None:
    for _ in range(batches):
        assert can_send(sender)
        sender.send(lanes.Span(sender.sent + 1, sender.sent + 10), now)


def can_send(sender: lanes.Sender) -> bool:
    return sender.open


@pytest.mark.parametrize("span", [(12, 20), (10, 20), (1, 10), (11, 10), (11, 1001)])
def test_only_what_follows_can_be_sent(span: tuple[int, int]) -> None:
    """A hole, a repetition, an empty batch and numbers never given out are refused, and change nothing."""
    sender = sending(1)
    with pytest.raises(ValueError, match="does not follow"):
        sender.send(lanes.Span(*span), now=0.0)
    assert (sender.sent, sender.due) == (10, 5.0)


def test_the_window_bounds_what_is_in_flight() -> None:
    """A full window is closed until an acknowledgement makes room in it."""
    sender = sending(3, window=3)
    assert not can_send(sender)
    sender.acknowledge(10, now=1.0)
    send(sender, 1, now=1.0)
    assert not can_send(sender)


def test_a_gap_that_a_whole_window_reports_is_one_rewind() -> None:
    """The first report rewinds; the reports of the same gap behind it are old news."""
    sender = sending(8)
    assert not sender.acknowledge(0, now=0.1, rewind=True)
    assert (sender.sent, sender.idle, sender.due) == (0, True, None)
    send(sender, 8, now=0.2)
    for _ in range(6):
        sender.acknowledge(0, now=0.3, rewind=True)
    assert sender.sent == 80


def test_a_gap_found_again_is_another_rewind() -> None:
    """After progress, a time-out and a reconnect, a report of a gap is news again."""
    sender = sending(8)
    sender.acknowledge(0, now=0.1, rewind=True)
    send(sender, 8, now=0.2)
    assert sender.acknowledge(10, now=0.3, rewind=True)
    assert sender.sent == 10
    send(sender, 8, now=0.4)
    assert sender.tick(now=60.0)
    send(sender, 1, now=60.0)
    sender.acknowledge(10, now=60.1, rewind=True)
    assert sender.sent == 10
    sender.reconnect()
    send(sender, 8, now=61.0)
    sender.acknowledge(10, now=61.1, rewind=True)
    assert sender.sent == 10


def test_an_old_report_of_a_gap_is_ignored() -> None:
    """A report that was overtaken by later acknowledgements rewinds nothing."""
    sender = sending(8)
    sender.acknowledge(30, now=0.1)
    assert not sender.acknowledge(20, now=0.2, rewind=True)
    assert (sender.acked, sender.sent) == (30, 80)


def test_an_answer_to_what_was_sent_before_a_rewind_counts() -> None:
    """What turns out to have arrived is not sent again, though the sender had rewound to before it."""
    sender = sending(8)
    sender.reconnect()
    send(sender, 1, now=1.0)
    assert sender.acknowledge(50, now=1.1)
    assert (sender.acked, sender.sent, sender.idle) == (50, 50, True)


def test_an_acknowledgement_within_a_batch_leaves_the_batch_in_flight() -> None:
    """A cursor may stop inside a batch that was cut anew: the batch holds its place, its time runs."""
    sender = sending(2)
    assert sender.acknowledge(5, now=1.0)
    assert (sender.acked, sender.sent, sender.idle) == (5, 20, False)
    assert sender.due == 6.0
    assert sender.acknowledge(15, now=2.0)
    assert (sender.sent, sender.due) == (20, 7.0)
    sender.acknowledge(20, now=3.0)
    assert (sender.sent, sender.idle) == (20, True)


def test_the_oldest_batch_in_flight_sets_the_time() -> None:
    """Later batches do not put off the time at which the first counts as lost; progress does."""
    sender = sending(1)
    send(sender, 1, now=4.0)
    assert sender.due == 5.0
    sender.acknowledge(10, now=4.5)
    assert sender.due == 13.5, "twice the 4.5 s that it took"


def test_without_an_answer_the_waits_double_up_to_the_cap() -> None:
    """Nobody answers: 5, 10, 20, 40, then every 60 seconds."""
    sender = sending(1)
    now, waits = 0.0, []
    for _ in range(7):
        assert sender.due is not None
        assert not sender.tick(sender.due - 0.001)
        waits.append(sender.due - now)
        now = sender.due
        assert sender.tick(now)
        send(sender, 1, now)
    assert waits == [5, 10, 20, 40, 60, 60, 60]


def test_a_new_connection_starts_afresh() -> None:
    """After a reconnect a lane goes on after its cursor, with its whole window and the shortest time-out."""
    sender = sending(8)
    sender.acknowledge(10, now=1.0)
    for now in (100.0, 200.0, 300.0):
        sender.tick(now)
        send(sender, 1, now)
    sender.reconnect()
    assert (sender.sent, sender.due) == (10, None)
    send(sender, 8, now=400.0)
    assert sender.due == 405.0
    sender.acknowledge(20, now=400.1)
    assert sender.due == pytest.approx(405.1)


def test_after_a_time_out_one_batch_asks_whether_anybody_listens() -> None:
    """A time-out closes the window down to one batch; the first progress opens it again."""
    sender = sending(8)
    assert sender.tick(5.0)
    send(sender, 1, now=5.0)
    assert not can_send(sender)
    sender.acknowledge(0, now=5.5)
    assert not can_send(sender)
    sender.acknowledge(10, now=6.0)
    send(sender, 8, now=6.0)
    assert not can_send(sender)


def test_an_hour_without_a_hub_costs_a_batch_a_minute() -> None:
    """A broker that keeps what nobody fetches is not filled with copies of one window."""
    sender = sending(8)
    sends = 8
    while sender.due is not None and sender.due < 3600:
        now = sender.due
        sender.tick(now)
        while sender.open:
            send(sender, 1, now)
            sends += 1
    assert sends <= 8 + 64


def drive(sender: lanes.Sender, batch_s: float, *, says_delivered: bool = False) -> int:
    """How many batches are sent until all are acknowledged over a link that takes `batch_s` for each.

    The link is good: one after the other, none is lost, and the acknowledgement takes no time.
    """
    receiver = lanes.Receiver()
    queue: deque[tuple[float, lanes.Span]] = deque()
    now = free = 0.0
    sends = 0
    while sender.unacknowledged:
        while sender.open:
            span = lanes.Span(sender.sent + 1, sender.sent + 10)
            free = max(now, free) + batch_s
            sender.send(span, now)
            queue.append((free, span))
            sends += 1
            assert sends < 1000, "the link fills faster than it empties"
        arrival = queue[0][0] if queue else float("inf")
        if sender.due is not None and sender.due < arrival:
            now = sender.due
            assert sender.tick(now)
            continue
        now, span = queue.popleft()
        if says_delivered:
            sender.delivered(now)
        if receiver.receive(span, sender.floor).verdict is lanes.Verdict.APPLY:
            receiver.commit(span.last)
        sender.acknowledge(receiver.cursor, now)
    return sends


@pytest.mark.parametrize("batch_s", [0.01, 0.6])
def test_a_good_link_carries_every_batch_once(batch_s: float) -> None:
    """While a window takes less than the time-out, nothing is sent twice."""
    assert drive(lanes.Sender(numbered=1000), batch_s) == 100


@pytest.mark.parametrize("batch_s", [5.5, 8.0, 20.0, 64.0, 120.0])
def test_a_thin_link_does_not_choke_on_its_own_repetitions(batch_s: float) -> None:
    """Where each batch takes longer than the time-out, the time-out learns, and some are sent twice."""
    assert drive(lanes.Sender(numbered=1000), batch_s) <= 300


@pytest.mark.parametrize("batch_s", [4.9, 8.0, 64.0, 120.0])
def test_a_sender_that_is_told_of_deliveries_repeats_little(batch_s: float) -> None:
    """Time under way is not silence of the receiver: after the first batches nothing is sent twice."""
    assert drive(lanes.Sender(numbered=1000), batch_s, says_delivered=True) <= 115


def test_a_delivery_gives_the_receiver_the_whole_time_out() -> None:
    """The wait for an answer begins when the broker has the batch; with nothing in flight there is none."""
    sender = sending(1)
    sender.delivered(now=4.0)
    assert sender.due == 9.0
    sender.acknowledge(10, now=4.5)
    sender.delivered(now=5.0)
    assert sender.due is None


def test_the_time_out_follows_the_link() -> None:
    """It is twice the time since the last progress, between 5 seconds and 5 minutes."""
    sender = sending(5)
    sender.acknowledge(10, now=10.0)
    assert sender.due == 10.0 + 20.0
    sender.acknowledge(20, now=22.0)
    assert sender.due == 22.0 + 24.0
    sender.acknowledge(30, now=23.0)
    assert sender.due == 23.0 + 5.0
    sender.acknowledge(40, now=4000.0)
    assert sender.due == 4000.0 + 300.0
    assert sender.tick(now=4300.0)
    send(sender, 1, now=4300.0)
    assert sender.due == 4300.0 + 300.0, "what was learned is no shorter for a time-out"
    sender.acknowledge(50, now=4400.0)
    send(sender, 2, now=9000.0)
    sender.acknowledge(60, now=9001.0)
    assert sender.due == 9001.0 + 5.0, "time without anything in flight is no silence"


def test_numbers_never_go_back() -> None:
    """An older word of what the store has committed changes nothing."""
    sender = lanes.Sender(numbered=10)
    sender.append(7)
    assert (sender.numbered, sender.unsent, sender.unacknowledged, sender.floor) == (10, 10, 10, 1)


# The receiver


@given(cursor=st.integers(0, 30), first=st.integers(1, 40), size=st.integers(1, 10), floor=st.integers(1, 50))
def test_a_receiver_takes_what_is_new_and_nothing_else(
    cursor: int, first: int, size: int, floor: int
) -> None:
    """Of a batch the records after the cursor are new; a hole is passed only if nobody can fill it."""
    span = lanes.Span(first, first + size - 1)
    receiver = lanes.Receiver(cursor)
    verdict, skip, lost = receiver.receive(span, floor)
    assert receiver.cursor == cursor, "judging commits nothing"
    if span.last <= cursor:
        assert (verdict, skip, lost) == (lanes.Verdict.REPEAT, 0, 0)
    elif first <= cursor + 1 or first <= floor:
        assert verdict is lanes.Verdict.APPLY
        assert first + skip == cursor + 1 + lost
        assert 0 <= skip < span.size
        assert skip == 0 or lost == 0
    else:
        assert (verdict, skip, lost) == (lanes.Verdict.GAP, 0, 0)


def test_a_cursor_never_goes_back() -> None:
    """Commits that are told in the wrong order leave the cursor at the highest."""
    receiver = lanes.Receiver()
    receiver.commit(9)
    receiver.commit(4)
    assert receiver.cursor == 9


# Live before backlog


def test_while_live_records_flow_a_backlog_has_one_turn_in_four() -> None:
    """With both always ready, exactly each BACKLOG_SHARE-th turn is of the backlog."""
    turns = lanes.Turns()
    taken = [turns.take(live=True, backlog=True) for _ in range(400)]
    assert taken == (["live"] * (lanes.BACKLOG_SHARE - 1) + ["backlog"]) * 100


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_nobody_waits_long_for_a_turn(ready: list[tuple[bool, bool]]) -> None:
    """A turn goes to one who is ready; live waits for one batch at most, a backlog for three."""
    turns = lanes.Turns()
    live_waits = backlog_waits = 0
    for live, backlog in ready:
        turn = turns.take(live, backlog)
        assert (turn is None) == (not live and not backlog)
        assert turn != "live" or live
        assert turn != "backlog" or backlog
        assert live or not backlog or turn == "backlog", "with no live records a backlog goes freely"
        live_waits = live_waits + 1 if live and turn != "live" else 0
        backlog_waits = backlog_waits + 1 if backlog and turn != "backlog" else 0
        assert live_waits <= 1
        assert backlog_waits <= lanes.BACKLOG_SHARE - 1


def test_a_live_record_passes_a_backlog() -> None:
    """However long the backlog, what is new waits behind its small window at most, and both arrive."""
    world = World()
    for _ in range(1000):
        world.append(1)
    world.restart_sender()
    world.open_generation()
    while world.send(most=1) is not None:
        pass
    assert len(world.batches) == lanes.BACKLOG_WINDOW
    world.append(1)
    assert world.send(most=1) == world.live
    world.settle(most=1)
    world.check()
    assert_all_arrived(world)


def test_generations_are_independent() -> None:
    """Each generation numbers from 1, and what is lost on one delays no other."""
    world = World()
    world.append(2)
    world.send()
    world.open_generation()
    world.append(2)
    world.send()
    del world.batches[0]
    world.take_batch(0)
    world.take_answer(0)
    old, new = sorted(world.outgoing)
    assert (world.senders[new].acked, world.senders[old].acked) == (2, 0)
    world.settle()
    assert_all_arrived(world)


# Names and books


@given(name=st.text("abc.-_9", min_size=1, max_size=20), generation=st.integers(1, 10**9))
def test_a_lane_is_read_as_it_is_written(name: str, generation: int) -> None:
    """A lane's text names it again."""
    lane = lanes.Lane(name, generation)
    assert lanes.Lane.parse(str(lane)) == lane


@pytest.mark.parametrize(
    "text", ["", "ack", "results.", ".1", "results.0", "results.-1", "results.x", "results.01", "results.١"]
)
def test_a_lane_has_one_spelling(text: str) -> None:
    """What is no lane, and a second spelling of one, is refused by name."""
    with pytest.raises(ValueError, match="is not a lane"):
        lanes.Lane.parse(text)


def test_the_books_of_a_lane() -> None:
    """Missing is what was passed and not committed; waiting is what is still to come."""
    books = lanes.Ledger(numbered=1_204_331, cursor=1_204_000, committed=1_203_990)
    assert (books.missing, books.waiting) == (10, 331)
    assert lanes.Ledger(numbered=5, cursor=9, committed=9).waiting == 0
    assert lanes.Span(3, 7).size == 5
