"""A model that is served: its runtime while it is in memory, who is using it, and how fast it has been."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from edge_agent import (
    batch_size,
    decode,
    models,
    outcomes,
    outputs,
    postprocess,
    runtime,
    sessions,
    states,
)

_NEWEST_SHARE: Final = 0.2
"""Weight of the newest measurement in the moving averages."""

Clock = Callable[[], float]


class WarmUpFailed(RuntimeError):
    """The graph opened, and a run with zeros failed."""


class Status(msgspec.Struct, frozen=True):
    """A served model: what runs it, and how fast."""

    name: str
    version: str
    sha256: str
    runtime: str
    wanted: str
    provider: str
    reason: str | None
    """Why `provider` is not `wanted`."""
    warm: bool
    loaded: bool
    """Whether it is in memory; if not, it made room for others, and its next task brings it back."""
    bytes: int
    """What it is taken to need in memory."""
    items_per_second: float
    """Of one thread, decoding included, by the latest batches."""
    batch_size: int
    """Items that are worth running together, as far as is known."""
    read_s: float
    """Seconds for decoding an item."""
    run_s: dict[int, float]
    """Seconds of a run, by the size of its batch."""


class Served:
    """Safe to use from several threads."""

    def __init__(
        self,
        model: models.Model,
        order: Sequence[str],
        opened: runtime.Runtime,
        read: postprocess.Outputs,
        *,
        weight: int = 0,
        clock: Clock = time.perf_counter,
        work_clock: Clock = time.thread_time,
    ) -> None:
        """`opened` is closed when the model leaves; `weight` are the bytes that it is taken to need, `order`
        the providers by which it is to be opened again."""
        self.model = model
        self.order = order
        self.weight = weight
        self.runtime = opened
        self.states = opened.states
        self.outputs = opened.outputs
        """Known by the warm-up at the latest."""
        self._clock = clock
        self._work_clock = work_clock
        self._outputs = read
        self.warm = False
        self.awake = True
        """Whether it is in memory."""
        self.load_s = 0.0
        """What it took to open it and to warm it up."""
        self.loaded_at = self.used_at = time.monotonic()
        self.needed = False
        """Whether anything ran on it since it was loaded, or waits to."""
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        fixed = opened.fixed_batch if isinstance(opened, runtime.OnnxRuntime) else None
        self.sizes = batch_size.Learnt(min(model.max_batch, fixed or model.max_batch))
        self._seconds_lately = 0.0

    # Who uses it

    def borrow(self) -> bool:
        """Keep the runtime open until it is given back; False if it was retired, or is asleep."""
        with self._lock:
            if self._retired or not self.awake:
                return False
            self._users += 1
            return True

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            self.used_at = time.monotonic()
            self.needed = True
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

    @property
    def in_use(self) -> bool:
        return self._users > 0

    def sleep(self) -> bool:
        """Leave memory, until `wake`; False if somebody uses it."""
        with self._lock:
            if self._users or self._retired:
                return False
            self.awake = False
        self.runtime.close()
        return True

    def wake(self, opener: runtime.Opener) -> None:
        """Come back into memory. Raises what opening and `warm_up` raise; then it goes on sleeping."""
        began = time.monotonic()
        opened = opener(self.model, self.order)
        self.runtime = opened
        try:
            self.warm_up()
        except BaseException:
            opened.close()
            raise
        self.loaded(time.monotonic() - began, needed=True)

    def loaded(self, load_s: float, *, needed: bool = False) -> None:
        """It is in memory, and that took so many seconds; `needed` where somebody waits for it."""
        with self._lock:
            self.awake = True
            self.needed = needed
            self.load_s = load_s
            self.loaded_at = self.used_at = time.monotonic()

    # What it does

    def predict(self, batch: decode.Stack, count: int, raw: bool = False) -> list[outcomes.Outcome]:
        """Run the batch; if that fails, run each item on its own, so that only the culprit fails."""
        try:
            return self.predict_together(batch, count, raw)
        except (outputs.UnexpectedOutput, runtime.Unavailable) as error:
            return [failed(error)] * count
        except Exception as error:  # noqa: BLE001 - runtimes raise kinds of their own; none may stop the agent
            if count == 1:
                return [failed(error)]
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
                for name, array in zip(self.model.manifest.fetched, arrays, strict=True)
            ]
        if self.states:
            made = self._with_states(made, arrays)
        return self._with_numbers(made, arrays) if raw else made

    def _with_states(
        self, made: Sequence[outcomes.Outcome], arrays: Sequence[decode.Array]
    ) -> list[outcomes.Outcome]:
        """The predictions with what the graph carries on."""
        names = self.model.manifest.fetched
        carried = [arrays[names.index(one.output)] for one in self.states]
        return [
            msgspec.structs.replace(one, state=tuple(array[row].copy() for array in carried))
            if isinstance(one, outcomes.Prediction)
            else one
            for row, one in enumerate(made)
        ]

    def _with_numbers(
        self, made: Sequence[outcomes.Outcome], arrays: Sequence[decode.Array]
    ) -> list[outcomes.Outcome]:
        """The predictions with the graph's own numbers."""
        named = list(zip(self.model.manifest.tensors, arrays, strict=False))  # the states are behind them
        return [
            msgspec.structs.replace(one, raw={name: array[row] for name, array in named})
            if isinstance(one, outcomes.Prediction)
            else one
            for row, one in enumerate(made)
        ]

    def warm_up(self) -> None:
        """Run zeros at the smallest and the largest batch; the first run allocates, the second counts.

        Then the largest batch's memory is given back: an agent without work weighs little. Raises
        WarmUpFailed or Unavailable.
        """
        for count in sorted({1, self.model.max_batch}):
            batch = self._zeros(count)
            for _ in range(2):
                began, worked = self._clock(), self._work_clock()
                try:
                    self.predict_together(batch, count)
                except runtime.Unavailable:
                    raise
                except Exception as error:
                    raise WarmUpFailed(
                        f"{self.model}: a run of {count} items of zeros failed on "
                        f"{self.runtime.provider}: {line(error)}"
                    ) from error
            took = self._clock() - began
            self.measured(count, took)
            self.learn(count, took, None, self._work_clock() - worked)
        self.runtime.trim(self._zeros(1).arrays)
        self.warm = True

    def _zeros(self, count: int) -> decode.Stack:
        batch = decode.allocate(self.model, count)
        arrays = {name: np.zeros_like(array) for name, array in batch.arrays.items()}
        if self.states:
            arrays |= states.stacked(self.states, [states.zeros(self.states)] * count)
        return batch._replace(arrays=arrays)

    # How fast it is

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
            loaded=self.awake,
            bytes=self.weight,
            items_per_second=self.items_per_second,
            batch_size=self.sizes.size,
            read_s=self.sizes.read_s,
            run_s=self.sizes.run_s,
        )


def failed(error: Exception) -> outcomes.ItemFailed:
    """The outcome of an item on which the model failed."""
    return outcomes.ItemFailed(f"the model failed on it: {line(error)}", outcomes.Failure.INFERENCE_FAILED)


def line(error: Exception) -> str:
    """An error on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _moved(average: float | None, newest: float) -> float:
    return newest if average is None else average + _NEWEST_SHARE * (newest - average)
