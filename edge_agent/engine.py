"""Runs payloads through models: decode, stack, run, and read the outputs.

Synchronous and safe to call from several threads at once; the heavy parts (decoding pictures, the
run itself) release Python's lock. An item that cannot be read, or that makes the graph fail, fails
alone: its neighbours in the batch get their predictions.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from edge_agent import batch_size, decode, models, outcomes, outputs, postprocess, runtime, sessions
from edge_agent.oip import messages

_NEWEST_SHARE: Final = 0.2
"""Weight of the newest measurement in the moving averages."""


class NotLoaded(LookupError):
    """The model is not loaded, or no longer."""


class WarmUpFailed(RuntimeError):
    """The graph opened, and a run with zeros failed."""


class Status(msgspec.Struct, frozen=True):
    """A loaded model: what runs it, and how fast."""

    name: str
    version: str
    sha256: str
    runtime: str
    wanted: str
    provider: str
    reason: str | None
    """Why `provider` is not `wanted`."""
    warm: bool
    items_per_second: float
    """Of one thread, decoding included, by the latest batches."""
    batch_size: int
    """Items that are worth running together, as far as is known."""
    read_s: float
    """Seconds for decoding an item."""
    run_s: dict[int, float]
    """Seconds of a run, by the size of its batch."""


class Work(NamedTuple):
    """A payload to run, and how many items its task says it has."""

    content_type: str
    payload: bytes
    items: int = 1


class Engine:
    """The models that this agent has loaded, ready to run.

    A model that is loaded is in `catalogue`, one that is unloaded is not. `threads` work inside
    one run; how many runs go on at one time is the caller's choice. `opener` chooses the runtimes in
    place of `runtime.opener`.
    """

    def __init__(
        self,
        catalogue: models.Catalogue,
        *,
        threads: int = 1,
        opener: runtime.Opener | None = None,
        clock: Callable[[], float] = time.perf_counter,
        work_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._catalogue = catalogue
        self._opener = opener or runtime.opener(threads=threads)
        self._clock = clock
        self._work_clock = work_clock
        self._served: dict[models.Key, _Served] = {}
        self._loading = threading.Lock()

    def load(self, model: models.Model, order: Sequence[str] = ()) -> Status:
        """Open and warm up `model`, then serve it; blocks for as long as that takes.

        Where the same name and version is loaded already, runs go on with it until the new one is
        warm, and those in flight finish on it. So an agent can serve on `order=("cuda", "cpu")` at
        once, and call this again for TensorRT, whose engine takes minutes to build.
        Raises BadGraph, WarmUpFailed or Unavailable; then nothing has changed.
        """
        with self._loading:
            read = postprocess.Outputs(model)
            served = _Served(model, self._opener(model, order), read)
            try:
                self._warm_up(served)
            except BaseException:
                served.retire()
                raise
            before = self._served.get(model.key)
            self._served = {**self._served, model.key: served}
            self._catalogue.add(model)
            if before is not None:
                before.retire()
            return served.status()

    def unload(self, key: models.Key) -> None:
        """Serve it no longer; runs in flight finish. Nothing happens where it is not loaded."""
        with self._loading:
            self._catalogue.remove(key)
            served = self._served.get(key)
            if served is not None:
                self._served = {other: one for other, one in self._served.items() if other != key}
                served.retire()

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
        for key in list(self._served):
            self.unload(key)

    def loaded(self) -> list[Status]:
        """Every model that is served, by name and version."""
        return [
            served.status() for key, served in sorted(self._served.items()) if self._catalogue.serves(key)
        ]

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

    def names(self) -> list[str]:
        """The names of the models that are served."""
        return sorted({model.name for model in self._catalogue})

    def items_per_s(self, name: str, version: str | None = None) -> float:
        """What one thread lately did of that model, decoding included; 0 where it is not loaded."""
        try:
            served = self._served.get(self.find(name, version).key)
        except models.UnknownModel:
            return 0.0
        return 0.0 if served is None else served.items_per_second

    def sizing(self, model: models.Model) -> batch_size.Policy:
        """How many of its items to run together, by what was measured since it was loaded."""
        served = self._served.get(model.key)
        if served is None or not model.manifest.batching.learn:
            return batch_size.Whole(model.max_batch)
        return served.sizes

    def outputs(self, model: models.Model) -> Sequence[runtime.Output]:
        """The outputs of a model's graph that the manifest reads. Raises NotLoaded."""
        served = self._served.get(model.key)
        if served is None:
            raise NotLoaded(f"{model} is not loaded")
        return served.outputs

    def run(self, model: models.Model, work: Sequence[Work]) -> list[list[outcomes.Outcome]]:
        """Run payloads in batches of at most `max_batch` items.

        For each payload the outcomes of its items, in their order; with the graph's own numbers where the
        payload came by the Open Inference Protocol. Raises NotLoaded.
        """
        spans = [decode.Span(self.open(model, one), 0, one.items) for one in work]
        raw = any(one.content_type == messages.CONTENT_TYPE for one in work)
        made = self._run(model, spans, raw=raw)
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
        self, model: models.Model, items: decode.Items, start: int, stop: int
    ) -> list[outcomes.Outcome]:
        """Run a slice of an opened payload, so that its task can be checkpointed or stopped after it.

        Raises NotLoaded.
        """
        return self._run(model, [decode.Span(items, start, min(stop, len(items)))])

    def _run(
        self, model: models.Model, spans: Sequence[decode.Span], *, raw: bool = False
    ) -> list[outcomes.Outcome]:
        served = self._borrow(model)
        made: list[outcomes.Outcome] = []
        try:
            for count, chunk in _chunks(spans, model.max_batch):
                made += self._run_chunk(model, served, chunk, count, raw)
        finally:
            served.give_back()
        return made

    def _borrow(self, model: models.Model) -> _Served:
        """What serves the model now, kept open until it is given back."""
        while True:
            served = self._served.get(model.key)
            if served is None:
                raise NotLoaded(f"{model} is not loaded")
            if served.borrow():
                return served
            # Replaced between the two lines: its successor is there already.

    def _run_chunk(
        self, model: models.Model, served: _Served, chunk: Sequence[decode.Span], count: int, raw: bool
    ) -> list[outcomes.Outcome]:
        """Decode the spans, `count` items together, into one batch, and run what could be read."""
        began, worked = self._clock(), self._work_clock()
        # As the items were opened, should the package have changed.
        batch = decode.allocate(model, count, chunk)
        bad: dict[int, str] = {}
        row = 0
        for items, start, stop in chunk:
            bad |= items.read(start, stop, batch, row)
            row += stop - start
        read, decoded = self._clock(), self._work_clock()
        if not bad:
            made = served.predict(batch, count, raw)
        else:
            good = [position for position in range(count) if position not in bad]
            predicted = iter(served.predict(batch.take(good), len(good), raw) if good else ())
            made = [
                outcomes.ItemFailed(bad[position]) if position in bad else next(predicted)
                for position in range(count)
            ]
        # A model that fails at once is not a fast one.
        if outcomes.Prediction in map(type, made):
            ended = self._clock()
            served.measured(count, ended - began)
            if outcomes.ItemFailed not in map(type, made):  # no culprit had its neighbours run one by one
                served.learn(count, ended - read, decoded - worked, self._work_clock() - decoded)
        return made

    def _warm_up(self, served: _Served) -> None:
        """Run zeros at the smallest and the largest batch; the first run allocates, the second counts.

        Then the largest batch's memory is given back: an agent without work weighs little.
        """
        for count in sorted({1, served.model.max_batch}):
            batch = _zeros(served.model, count)
            for _ in range(2):
                began, worked = self._clock(), self._work_clock()
                try:
                    served.predict_together(batch, count)
                except runtime.Unavailable:
                    raise
                except Exception as error:
                    raise WarmUpFailed(
                        f"{served.model}: a run of {count} items of zeros failed on "
                        f"{served.runtime.provider}: {_line(error)}"
                    ) from error
            took = self._clock() - began
            served.measured(count, took)
            served.learn(count, took, None, self._work_clock() - worked)
        served.runtime.trim(_zeros(served.model, 1).arrays)
        served.warm = True


class _Served:
    """A loaded model with its runtime, who is using it, and how fast it has been."""

    def __init__(self, model: models.Model, opened: runtime.Runtime, read: postprocess.Outputs) -> None:
        self.model = model
        self.runtime = opened
        self.outputs = opened.outputs
        """Known by the warm-up at the latest."""
        self._outputs = read
        self.warm = False
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        fixed = opened.fixed_batch if isinstance(opened, runtime.OnnxRuntime) else None
        self.sizes = batch_size.Learnt(min(model.max_batch, fixed or model.max_batch))
        self._seconds_lately = 0.0

    def borrow(self) -> bool:
        """Keep the runtime open until it is given back; False if it was retired."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and self._users == 0
        if last:
            self.runtime.close()

    def retire(self) -> None:
        """Take no new users, and close when the last one has left."""
        with self._lock:
            self._retired = True
            unused = self._users == 0
        if unused:
            self.runtime.close()

    def predict(self, batch: decode.Stack, count: int, raw: bool = False) -> list[outcomes.Outcome]:
        """Run the batch; if that fails, run each item on its own, so that only the culprit fails."""
        try:
            return self.predict_together(batch, count, raw)
        except (outputs.UnexpectedOutput, runtime.Unavailable) as error:
            return [_failed(error)] * count
        except Exception as error:  # noqa: BLE001 - runtimes raise kinds of their own; none may stop the agent
            if count == 1:
                return [_failed(error)]
        made: list[outcomes.Outcome] = []
        for row in range(count):
            made += self.predict(batch.take([row]), 1, raw)
        return made

    def predict_together(self, batch: decode.Stack, count: int, raw: bool = False) -> list[outcomes.Outcome]:
        arrays = self.runtime.run(batch.arrays)
        made = self._outputs.read(arrays, count, batch.frames)
        if not self.outputs:
            self.outputs = [
                runtime.Output(name, array.dtype.name, array.shape[1:])
                for name, array in zip(self.model.manifest.tensors, arrays, strict=True)
            ]
        return self._with_numbers(made, arrays) if raw else made

    def _with_numbers(
        self, made: Sequence[outcomes.Outcome], arrays: Sequence[decode.Array]
    ) -> list[outcomes.Outcome]:
        """The predictions with the graph's own numbers."""
        names = self.model.manifest.tensors
        return [
            msgspec.structs.replace(
                one, raw={name: array[row] for name, array in zip(names, arrays, strict=True)}
            )
            if isinstance(one, outcomes.Prediction)
            else one
            for row, one in enumerate(made)
        ]

    def measured(self, count: int, seconds: float) -> None:
        """Note how long a batch of `count` items took."""
        with self._lock:
            self._seconds_lately = _moved(self._seconds_lately or None, seconds / count)

    def learn(self, count: int, run_s: float, read_s: float | None, work_s: float) -> None:
        """Note what a run of `count` items took, and how much of it was work of its thread."""
        with self._lock:
            self.sizes.ran(count, run_s, read_s, work_s if self.runtime.provider == sessions.CPU else None)

    @property
    def items_per_second(self) -> float:
        return 1.0 / self._seconds_lately if self._seconds_lately else 0.0

    def status(self) -> Status:
        return Status(
            name=self.model.name,
            version=self.model.version,
            sha256=self.model.sha256,
            runtime=self.runtime.name,
            wanted=self.runtime.wanted,
            provider=self.runtime.provider,
            reason=self.runtime.reason,
            warm=self.warm,
            items_per_second=self.items_per_second,
            batch_size=self.sizes.size,
            read_s=self.sizes.read_s,
            run_s=self.sizes.run_s,
        )


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


def _zeros(model: models.Model, count: int) -> decode.Stack:
    batch = decode.allocate(model, count)
    return batch._replace(arrays={name: np.zeros_like(array) for name, array in batch.arrays.items()})


def _moved(average: float | None, newest: float) -> float:
    return newest if average is None else average + _NEWEST_SHARE * (newest - average)


def _failed(error: Exception) -> outcomes.ItemFailed:
    return outcomes.ItemFailed(f"the model failed on it: {_line(error)}", outcomes.Failure.INFERENCE_FAILED)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
