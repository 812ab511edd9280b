"""Two durable stores, the state machines of the lanes between them, and the worst link there can be.

A `World` does one small thing at a time, as it is told: give out records, send a batch, let any
message arrive, any number of times or never, kill either side between any two of its steps. After
each it compares what both sides believe with what is true; only the world sees both.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from shared import lanes

NAME: Final = "results"


class Crash(enum.Enum):
    """Where a process dies while it handles a message."""

    BEFORE = enum.auto()
    """Before its store has committed what the message brought."""
    AFTER = enum.auto()
    """After that, and before it told anybody."""


class Batch(NamedTuple):
    """A batch on its way: the records are stood for by values that are unique in their world."""

    lane: lanes.Lane
    span: lanes.Span
    floor: int
    values: tuple[int, ...]


class Answer(NamedTuple):
    """An acknowledgement on its way."""

    lane: lanes.Lane
    cursor: int
    rewind: bool


@dataclass
class Outgoing:
    """What a sender's store keeps of one lane."""

    acked: int = 0
    chunks: list[lanes.Span] = field(default_factory=list)
    records: dict[int, int] = field(default_factory=dict)
    given: list[int] = field(default_factory=list)
    """Every value ever given a number, deleted or not: for the world's eyes only."""

    @property
    def numbered(self) -> int:
        return len(self.given)

    def append(self, values: list[int]) -> int:
        """Number the values as one chunk."""
        first = self.numbered + 1
        self.given += values
        self.chunks.append(lanes.Span(first, self.numbered))
        self.records |= dict(enumerate(values, first))
        return self.numbered

    def read(self, after: int, most: int) -> lanes.Span:
        """The chunks after a number: whole ones, at least one, of no more than `most` records together."""
        waiting = [chunk for chunk in self.chunks if chunk.last > after]
        last = waiting[0].last
        for chunk in waiting[1:]:
            if chunk.last - after > most:
                break
            last = chunk.last
        return lanes.Span(after + 1, last)

    def acknowledged(self, cursor: int) -> None:
        """Delete what the receiver has committed."""
        self.acked = cursor
        self.chunks = [chunk for chunk in self.chunks if chunk.last > cursor]
        self.records = {number: value for number, value in self.records.items() if number > cursor}

    def copy(self) -> Outgoing:
        return Outgoing(self.acked, list(self.chunks), dict(self.records), list(self.given))


@dataclass
class Incoming:
    """What a receiver's store keeps of one lane: the cursor, and the records with their numbers."""

    cursor: int = 0
    committed: int = 0
    records: list[tuple[int, int]] = field(default_factory=list)

    def copy(self) -> Incoming:
        return Incoming(self.cursor, self.committed, list(self.records))


@dataclass
class Tally:
    """What was done on one lane."""

    sends: int = 0
    gap_rewinds: int = 0
    timeouts: int = 0
    restarts: int = 0
    """Of the sender or its connection."""
    progress: int = 0
    """Acknowledgements that moved the cursor."""
    lost: int = 0
    """Records that the receiver was told to count as missing."""


class World:
    """One agent's lanes of one name, oldest generation first, and the hub that receives them."""

    def __init__(self, window: int = lanes.WINDOW, backlog_window: int = lanes.BACKLOG_WINDOW) -> None:
        self.window = window
        self.backlog_window = backlog_window
        self.now = 0.0
        self.outgoing: dict[lanes.Lane, Outgoing] = {}
        self.incoming: dict[lanes.Lane, Incoming] = {}
        self.senders: dict[lanes.Lane, lanes.Sender] = {}
        self.receivers: dict[lanes.Lane, lanes.Receiver] = {}
        self.turns = lanes.Turns()
        self.batches: list[Batch] = []
        self.answers: list[Answer] = []
        self.tallies: dict[lanes.Lane, Tally] = {}
        self.regressed: lanes.Lane | None = None
        self.receiver_restored = False
        self.sender_restored = False
        self._flights: dict[lanes.Lane, list[int]] = {}
        self._values = count(1)
        self.open_generation()

    @property
    def live(self) -> lanes.Lane:
        return max(self.outgoing)

    # The sender's side

    def open_generation(self) -> None:
        """New records go to a fresh lane from now on; the others drain."""
        for lane in self.senders:
            self.senders[lane].window = self.backlog_window
        lane = lanes.Lane(NAME, len(self.outgoing) + 1)
        self.outgoing[lane] = Outgoing()
        self.incoming[lane] = Incoming()
        self.senders[lane] = lanes.Sender(window=self.window)
        self.tallies[lane] = Tally()
        self._flights[lane] = []

    def append(self, size: int, *, told: bool = True) -> None:
        """The store commits a chunk of new records; without `told` the process dies before it says so."""
        numbered = self.outgoing[self.live].append([next(self._values) for _ in range(size)])
        if told:
            self.senders[self.live].append(numbered)
        else:
            self.restart_sender()

    def ready(self) -> tuple[bool, lanes.Lane | None]:
        """Whether the live lane may send, and the oldest other lane that may."""
        older = (lane for lane in sorted(self.senders) if lane != self.live and self.senders[lane].open)
        return self.senders[self.live].open, next(older, None)

    def send(self, most: int = 10**9, *, meanwhile: int | None = None) -> lanes.Lane | None:
        """Send the batch whose turn it is; returns its lane.

        `meanwhile`: the answer with this index arrives between the reading of the store and the
        sending, as it may where reading takes time.
        """
        live_ready, backlog = self.ready()
        turn = self.turns.take(live_ready, backlog is not None)
        lane = self.live if turn == "live" else backlog
        if turn is None or lane is None:
            return None
        sender, store = self.senders[lane], self.outgoing[lane]
        after = sender.sent
        span = store.read(after, most)
        values = tuple(store.records[number] for number in range(span.first, span.last + 1))
        if meanwhile is not None and self.answers:
            self.take_answer(meanwhile)
            if sender.sent != after:
                return lane
        sender.send(span, self.now)
        self._flights[lane].append(span.last)
        assert len(self._flights[lane]) <= sender.window
        self.tallies[lane].sends += 1
        self.batches.append(Batch(lane, span, sender.floor, values))
        return lane

    def take_answer(self, index: int, *, again: bool = False, crash: Crash | None = None) -> None:
        """An acknowledgement arrives at the sender; `again`: and will arrive once more."""
        answer = self.answers[index] if again else self.answers.pop(index)
        sender, store = self.senders[answer.lane], self.outgoing[answer.lane]
        sent = sender.sent
        try:
            moved = sender.acknowledge(answer.cursor, self.now, rewind=answer.rewind)
        except lanes.JournalRegressed:
            self.regressed = answer.lane
            return
        self.tallies[answer.lane].progress += moved
        self._note_flight(answer.lane, rewound=answer.rewind and sender.sent == sender.acked < sent)
        if moved and crash is not Crash.BEFORE:
            self._delete(store, answer)
        if crash is not None:
            self.restart_sender()

    def _delete(self, store: Outgoing, answer: Answer) -> None:
        """Nothing is deleted that the receiver has not committed, under the same number."""
        if not self.receiver_restored:
            there = dict(self.incoming[answer.lane].records)
            lost = [n for n, value in store.records.items() if n <= answer.cursor and there.get(n) != value]
            assert not lost, f"records {lost} of {answer.lane} are deleted and were never committed"
        store.acknowledged(answer.cursor)

    def _note_flight(self, lane: lanes.Lane, *, rewound: bool) -> None:
        """Keep our own list of what is in flight, by the rules: a rewind forgets all of it."""
        if rewound:
            self.tallies[lane].gap_rewinds += 1
            self._flights[lane] = []
        acked = self.senders[lane].acked
        self._flights[lane] = [last for last in self._flights[lane] if last > acked]

    def reconnect(self) -> None:
        """The connection is new; what is in the link may still arrive, or not."""
        for lane, sender in self.senders.items():
            sender.reconnect()
            self._flights[lane] = []
            self.tallies[lane].restarts += 1

    def restart_sender(self) -> None:
        """The sender's process dies and begins again from its store."""
        for lane, store in self.outgoing.items():
            window = self.window if lane == self.live else self.backlog_window
            self.senders[lane] = lanes.Sender(store.acked, store.numbered, window)
            self._flights[lane] = []
            self.tallies[lane].restarts += 1
        self.turns = lanes.Turns()

    def wait(self, seconds: float) -> None:
        """Time passes; what is due is done."""
        self.now += seconds
        for lane, sender in self.senders.items():
            if sender.tick(self.now):
                self.tallies[lane].timeouts += 1
                self._flights[lane] = []

    # The receiver's side

    def take_batch(self, index: int, *, again: bool = False, crash: Crash | None = None) -> None:
        """A batch arrives at the receiver; `again`: and will arrive once more."""
        batch = self.batches[index] if again else self.batches.pop(index)
        store = self.incoming[batch.lane]
        receiver = self.receivers.setdefault(batch.lane, lanes.Receiver(store.cursor))
        decision = receiver.receive(batch.span, batch.floor)
        if crash is Crash.BEFORE:
            return self.restart_receiver()
        if decision.verdict is lanes.Verdict.APPLY:
            new = list(enumerate(batch.values, batch.span.first))[decision.skip :]
            store.records += new
            store.committed += len(new)
            store.cursor = batch.span.last
            self.tallies[batch.lane].lost += decision.lost
            assert self.receiver_restored or not decision.lost, f"{batch} made records missing"
        if crash is Crash.AFTER:
            return self.restart_receiver()
        if decision.verdict is lanes.Verdict.APPLY:
            receiver.commit(batch.span.last)
        self.answers.append(Answer(batch.lane, receiver.cursor, decision.verdict is lanes.Verdict.GAP))
        return None

    def restart_receiver(self) -> None:
        """The receiver's process dies and begins again from its store."""
        self.receivers.clear()

    def restore_receiver(self, lane: lanes.Lane, older: Incoming) -> None:
        """The receiver's store is put back to a state that it had before; what it had said is lost."""
        self.receiver_restored = True
        self.answers.clear()
        self.incoming[lane] = older.copy()
        self.restart_receiver()

    def restore_sender(self, lane: lanes.Lane, older: Outgoing) -> None:
        """The sender's store is put back to a state that it had before."""
        self.sender_restored = True
        self.outgoing[lane] = older.copy()
        self.restart_sender()

    # What must be true, always

    def check(self) -> None:
        """Compare both sides; AssertionError says what is wrong."""
        for lane, sender in self.senders.items():
            store, received = self.outgoing[lane], self.incoming[lane]
            receiver = self.receivers.get(lane)
            flight, tally = self._flights[lane], self.tallies[lane]
            assert sender.acked <= sender.sent <= sender.numbered == store.numbered
            assert store.acked <= sender.acked
            assert sender.idle == (not flight) == (sender.sent == sender.acked)
            assert (sender.due is None) == sender.idle
            assert sender.unacknowledged == sender.numbered - sender.acked
            assert list(store.records) == list(range(store.acked + 1, store.numbered + 1))
            assert receiver is None or receiver.cursor == received.cursor
            assert tally.gap_rewinds <= 1 + tally.progress + tally.timeouts + tally.restarts
            if not self.receiver_restored and not self.sender_restored:
                assert sender.acked <= received.cursor
                assert received.records == list(enumerate(store.given[: received.cursor], 1))
                assert received.committed == received.cursor

    # The end of the storm

    @property
    def settled(self) -> bool:
        on_the_way = self.batches or self.answers
        return not on_the_way and not any(sender.unacknowledged for sender in self.senders.values())

    def settle(self, most: int = 10**9) -> None:
        """From now on the link loses nothing and keeps the order. All must arrive, and soon.

        The bounds: each message that is still in the link may cause one rewind, as may what the
        sender believes to be in flight and is not; a rewind costs a window; and the receiver is
        never asked twice for what is under way.
        """
        stale = len(self.batches) + len(self.answers)
        chunks = {lane: len(store.chunks) for lane, store in self.outgoing.items()}
        before = {lane: Tally(**vars(tally)) for lane, tally in self.tallies.items()}
        rounds = 0
        while not self.settled and self.regressed is None:
            rounds += 1
            assert rounds <= 2 * (sum(chunks.values()) + stale) + 10, "the lanes go round in circles"
            while self.send(most) is not None:
                self.check()
            dues = [sender.due for sender in self.senders.values() if sender.due is not None]
            if not self.batches and not self.answers:
                self.wait(max(0.0, min(dues) - self.now))
            while self.batches:
                self.take_batch(0)
                self.check()
            while self.answers and self.regressed is None:
                self.take_answer(0)
                self.check()
        for lane, tally in self.tallies.items():
            timeouts = tally.timeouts - before[lane].timeouts
            rewinds = tally.gap_rewinds - before[lane].gap_rewinds + timeouts
            assert timeouts <= 1, f"{lane} gave up on a good link"
            assert rewinds <= 2 + stale, f"{lane} was rewound {rewinds} times"
            assert tally.sends - before[lane].sends <= chunks[lane] + self.window * rewinds
