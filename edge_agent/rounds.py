"""Items of several streams through a model that carries a state: pure but for what it is given to call.

An item needs the state that the one before it left behind. So a batch is made of one item of each stream, the
next round of the next ones, until all have run. Items of one stream keep their order, whatever payloads they
came in, and no batch has two of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

import msgspec

from edge_agent import decode, outcomes, states

HELD: Final = outcomes.ItemFailed(
    "not run: an item before it in its stream is to be tried again", outcomes.Failure.NOT_RUN
)


class Part(NamedTuple):
    """Some items of a payload, for their stream."""

    span: decode.Span
    stream: Hashable
    """Parts that have the same one are of one stream."""
    final: bool
    """Whether the stream goes on behind an item on which the model failed."""
    whole: bool
    """Whether all of its items are tried again if one of them is; else only those from that one on."""

    @property
    def items(self) -> int:
        return self.span.stop - self.span.start


class Ran(NamedTuple):
    """What came of all of them."""

    outcomes: list[list[outcomes.Outcome]]
    """By part."""
    states: dict[Hashable, states.State]
    """Of each stream, as it is now."""


Step = Callable[[Sequence[decode.Span], Sequence[states.State]], Sequence[outcomes.Outcome]]
"""Runs one item of each of several streams, each from its state; predictions have the one after it."""


def run(parts: Sequence[Part], begin: Callable[[Hashable], states.State], step: Step, most: int) -> Ran:
    """Run the items, at most `most` in a batch; `begin` tells of each stream in which state it is."""
    made: list[list[outcomes.Outcome]] = [[] for _ in parts]
    lines: dict[Hashable, _Line] = {}
    for part, its in zip(parts, made, strict=True):
        line = lines.get(part.stream)
        if line is None:
            line = lines[part.stream] = _Line(begin(part.stream))
        line.parts.append((part, its))
    waiting = deque(line for line in lines.values() if line.goes_on())
    while waiting:
        now = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        for line, outcome in zip(
            now, step([line.item() for line in now], [line.state for line in now]), strict=True
        ):
            line.take(outcome)
        waiting.extend(line for line in now if line.goes_on())
    return Ran(made, {stream: line.state for stream, line in lines.items()})


class _Line:
    """The items of one stream, and how far they are."""

    def __init__(self, state: states.State) -> None:
        self.state = state
        self.parts: deque[tuple[Part, list[outcomes.Outcome]]] = deque()
        """Those that are not through, with the outcomes of each."""
        self._before = state
        """The state before the first of them."""

    def goes_on(self) -> bool:
        """Whether there is an item to run."""
        while self.parts:
            part, made = self.parts[0]
            if len(made) < part.items:
                return True
            self.parts.popleft()
            self._before = self.state
        return False

    def item(self) -> decode.Span:
        """The next item."""
        part, made = self.parts[0]
        place = part.span.start + len(made)
        return decode.Span(part.span.items, place, place + 1)

    def take(self, outcome: outcomes.Outcome) -> None:
        """What came of it. An item that cannot be read leaves the stream as it was."""
        part, made = self.parts[0]
        if isinstance(outcome, outcomes.Prediction):
            self.state = outcome.state or self.state
            made.append(msgspec.structs.replace(outcome, state=None))
            return
        made.append(outcome)
        if outcome.kind is outcomes.Failure.INFERENCE_FAILED and not part.final:
            if part.whole:
                self.state = self._before
            for left, its in self.parts:
                its.extend([HELD] * (left.items - len(its)))
            self.parts.clear()


def again(made: Sequence[outcomes.Outcome]) -> bool:
    """Whether one of these items may be tried again."""
    return any(
        isinstance(one, outcomes.ItemFailed) and one.kind is not outcomes.Failure.INVALID_INPUT
        for one in made
    )
