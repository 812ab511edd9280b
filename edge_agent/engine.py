"""Runs payloads through models: decode, stack, run, and read the outputs.

Synchronous and safe to call from several threads at once; the heavy parts (decoding pictures, the
run itself) release Python's lock. An item that cannot be read, or that makes the graph fail, fails
alone: its neighbours in the batch get their predictions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edge_agent import (
    batch_size,
    decode,
    models,
    outcomes,
    residents,
    room,
    rounds,
    runtime,
    served,
    states,
    streams,
)
from edge_agent.oip import messages

NotLoaded = residents.NotLoaded
WarmUpFailed = served.WarmUpFailed
Status = served.Status


class Work(NamedTuple):
    """A payload to run, and how many items its task says it has."""

    content_type: str
    payload: bytes
    items: int = 1
    stream: streams.Stream | None = None
    """Of a model that carries a state, the stream of these items; without it they are one of their own."""


class Engine:
    """The models that this agent has loaded, ready to run.

    A model that is loaded is in `catalogue`, one that is unloaded is not. `threads` work inside
    one run; how many runs go on at one time is the caller's choice. `opener` chooses the runtimes in
    place of `runtime.opener`. Models beyond `limits` are out of memory, and loaded again when they are run;
    the states of those that carry one from item to item are in `carried`.
    """

    def __init__(
        self,
        catalogue: models.Catalogue,
        *,
        threads: int = 1,
        opener: runtime.Opener | None = None,
        limits: room.Limits | None = None,
        carried: streams.Streams | None = None,
        clock: Callable[[], float] = time.perf_counter,
        work_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._work_clock = work_clock
        self.limits = limits or room.Limits()
        self.models = residents.Residents(
            opener or runtime.opener(threads=threads),
            self.limits,
            clock=clock,
            work_clock=work_clock,
        )
        self.streams = carried or streams.Streams()

    def load(self, model: models.Model, order: Sequence[str] = ()) -> Status:
        """Open and warm up `model`, then serve it; blocks for as long as that takes.

        Where the same name and version is loaded already, runs go on with it until the new one is
        warm, and those in flight finish on it. So an agent can serve on `order=("cuda", "cpu")` at
        once, and call this again for TensorRT, whose engine takes minutes to build.
        Raises BadGraph, WarmUpFailed, TooLarge or Unavailable; then nothing has changed.
        """
        return self.models.load(model, order, lambda: self._catalogue.add(model)).status()

    def unload(self, key: models.Key) -> None:
        """Serve it no longer; runs in flight finish. Nothing happens where it is not loaded."""
        self.models.unload(key, lambda: self._catalogue.remove(key))
        self.streams.forget(key)

    def keep(self, keys: Collection[models.Key]) -> None:
        """These stay in memory from when they are there, whoever else needs room; no others do any longer."""
        self.models.keep(keys)

    @contextlib.asynccontextmanager
    async def held(self, model: models.Model) -> AsyncIterator[None]:
        """While this goes on, a model that is in memory stays there."""
        one = self.models.get(model.key) if self.limits else None
        borrowed = one is not None and one.borrow()
        try:
            yield
        finally:
            if one is not None and borrowed:
                await asyncio.to_thread(one.give_back)  # whoever is the last may have to close it

    def retire(self, key: models.Key) -> None:
        """Serve it to nobody who comes now; tasks that came before still run on it."""
        self._catalogue.retire(key)

    def prefer(self, versions: Mapping[str, Sequence[str]]) -> None:
        """Which version of a model serves who names none; see `models.Catalogue.prefer`."""
        self._catalogue.prefer(versions)

    def hide(self, key: models.Key) -> None:
        """Have nothing run on it any more but what runs; to be unloaded then."""
        self._catalogue.remove(key)

    def close(self) -> None:
        """Unload everything."""
        for key in self.models:
            self.unload(key)

    def loaded(self) -> list[Status]:
        """Every model that is served, by name and version; not all of them need be in memory."""
        found = ((key, self.models.get(key)) for key in self.models)
        return [one.status() for key, one in found if one is not None and self._catalogue.serves(key)]

    def find(self, name: str, version: str | None = None) -> models.Model:
        """The loaded model of that name; without a version the one that serves who names none. Raises
        UnknownModel."""
        return self._catalogue.resolve(name, version)

    def has(self, name: str, version: str | None = None) -> bool:
        """Whether `find` would find it."""
        try:
            self.find(name, version)
        except models.UnknownModel:
            return False
        return True

    def carries(self, name: str) -> bool:
        """Whether a model of that name is served that carries a state from item to item."""
        return name in self._catalogue.carrying

    def names(self) -> list[str]:
        """The names of the models that are served."""
        return sorted({model.name for model in self._catalogue})

    def items_per_s(self, name: str, version: str | None = None) -> float:
        """What one thread lately did of that model, decoding included; 0 where it is not loaded."""
        try:
            one = self.models.get(self.find(name, version).key)
        except models.UnknownModel:
            return 0.0
        return 0.0 if one is None else one.items_per_second

    def sizing(self, model: models.Model) -> batch_size.Policy:
        """How many of its items to run together, by what was measured since it was loaded."""
        one = self.models.get(model.key)
        if one is None or not model.manifest.batching.learn:
            return batch_size.Whole(model.max_batch)
        return one.sizes

    def outputs(self, model: models.Model) -> Sequence[runtime.Output]:
        """The outputs of a model's graph that the manifest reads. Raises NotLoaded."""
        one = self.models.get(model.key)
        if one is None:
            raise NotLoaded(f"{model} is not loaded")
        return one.outputs[: len(model.manifest.tensors)]

    def run(self, model: models.Model, work: Sequence[Work]) -> list[list[outcomes.Outcome]]:
        """Run payloads in batches of at most `max_batch` items.

        For each payload the outcomes of its items, in their order; with the graph's own numbers where the
        payload came by the Open Inference Protocol. Raises NotLoaded.
        """
        spans = [decode.Span(self.open(model, one), 0, one.items) for one in work]
        raw = any(one.content_type == messages.CONTENT_TYPE for one in work)
        if model.manifest.states:
            parts = [_part(model, one, span) for one, span in zip(work, spans, strict=True)]
            return self._run_parts(model, parts, raw)
        made = self._run(model, spans, raw)
        if len(work) == 1:
            return [made]
        flat = iter(made)
        return [list(itertools.islice(flat, one.items)) for one in work]

    def open(self, model: models.Model, work: Work) -> decode.Items:
        """Open a payload, to run it in slices; if it can't be read, its items all fail for that reason."""
        try:
            items = decode.unpack(model, work.content_type, work.payload)
        except decode.Unreadable as error:
            return decode.Broken(work.items, str(error))
        if len(items) != work.items:
            return decode.Broken(work.items, f"the payload has {len(items)} items, and its task {work.items}")
        return items

    def run_items(
        self,
        model: models.Model,
        items: decode.Items,
        start: int,
        stop: int,
        stream: streams.Stream | None = None,
    ) -> list[outcomes.Outcome]:
        """Run a slice of an opened payload, so that its task can be checkpointed or stopped after it.

        Of a model that carries a state, slices are of one `stream`. Raises NotLoaded.
        """
        span = decode.Span(items, start, min(stop, len(items)))
        if not model.manifest.states:
            return self._run(model, [span])
        if stream is None:
            (made,) = self._run_parts(model, [rounds.Part(span, object(), final=True, whole=False)])
            return made
        key = streams.key(model, stream)
        (made,) = self._run_parts(model, [rounds.Part(span, key, final=stream.final, whole=False)])
        if stream.own and span.stop == len(items) and (stream.final or not rounds.again(made)):
            self.streams.end(key)
        return made

    def _run(
        self, model: models.Model, spans: Sequence[decode.Span], raw: bool = False
    ) -> list[outcomes.Outcome]:
        try:
            one = self.models.borrow(model)
        except NotLoaded:
            raise
        except Exception as error:  # noqa: BLE001 - it made room, and whatever keeps it from being loaded again fails a run
            return [served.failed(error)] * sum(stop - start for _, start, stop in spans)
        made: list[outcomes.Outcome] = []
        try:
            for count, chunk in _chunks(spans, model.max_batch):
                made += self._run_chunk(model, one, chunk, count, raw)
        finally:
            one.give_back()
        return made

    def _run_parts(
        self, model: models.Model, parts: Sequence[rounds.Part], raw: bool = False
    ) -> list[list[outcomes.Outcome]]:
        """Run items that each need the state which the one before it left behind."""
        try:
            one = self.models.borrow(model)
        except NotLoaded:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return [[served.failed(error)] * part.items for part in parts]

        def begin(stream: Hashable) -> states.State:
            held = self.streams.get(stream) if isinstance(stream, streams.Key) else None
            return states.zeros(one.states) if held is None else held

        def step(spans: Sequence[decode.Span], before: Sequence[states.State]) -> list[outcomes.Outcome]:
            return self._run_chunk(model, one, spans, len(spans), raw, before)

        try:
            ran = rounds.run(parts, begin, step, model.max_batch)
        finally:
            one.give_back()
        for stream, state in ran.states.items():
            if isinstance(stream, streams.Key):
                self.streams.put(stream, state)
        return ran.outcomes

    def _run_chunk(
        self,
        model: models.Model,
        one: served.Served,
        chunk: Sequence[decode.Span],
        count: int,
        raw: bool,
        before: Sequence[states.State] | None = None,
    ) -> list[outcomes.Outcome]:
        """Decode the spans, `count` items together, into one batch, and run what could be read; where a state
        is carried, each from the one `before` it."""
        began, worked = self._clock(), self._work_clock()
        # As the items were opened, should the package have changed.
        batch = decode.allocate(model, count, chunk)
        if before is not None:
            batch.arrays.update(states.stacked(one.states, before))
        bad: dict[int, str] = {}
        row = 0
        for items, start, stop in chunk:
            bad |= items.read(start, stop, batch, row)
            row += stop - start
        read, decoded = self._clock(), self._work_clock()
        if not bad:
            made = one.predict(batch, count, raw)
        else:
            good = [position for position in range(count) if position not in bad]
            predicted = iter(one.predict(batch.take(good), len(good), raw) if good else ())
            made = [
                outcomes.ItemFailed(bad[position]) if position in bad else next(predicted)
                for position in range(count)
            ]
        # A model that fails at once is not a fast one.
        if outcomes.Prediction in map(type, made):
            ended = self._clock()
            one.measured(count, ended - began)
            if outcomes.ItemFailed not in map(type, made):  # no culprit had its neighbours run one by one
                one.learn(count, ended - read, decoded - worked, self._work_clock() - decoded)
        return made


def _chunks(spans: Sequence[decode.Span], size: int) -> Iterator[tuple[int, list[decode.Span]]]:
    """The spans in their order, cut so that each chunk has `size` items, the last one fewer; and how many."""
    chunk: list[decode.Span] = []
    count = 0
    for items, start, stop in spans:
        while start < stop:
            end = min(stop, start + size - count)
            chunk.append(decode.Span(items, start, end))
            count += end - start
            start = end
            if count == size:
                yield count, chunk
                chunk, count = [], 0
    if chunk:
        yield count, chunk


def _part(model: models.Model, work: Work, span: decode.Span) -> rounds.Part:
    """A payload that runs whole. A stream of its own needs no place where its state is kept."""
    if work.stream is None or work.stream.own:
        return rounds.Part(span, object(), final=work.stream is None or work.stream.final, whole=True)
    return rounds.Part(span, streams.key(model, work.stream), final=work.stream.final, whole=True)
