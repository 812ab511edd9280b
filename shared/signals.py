"""The small JSON messages beside the lanes: presence, telemetry and acknowledgements.

They carry no promise: a lost one is followed by the next. Fields that a newer peer adds are
ignored, and every field that an older one may lack has a default.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec


class SignalError(ValueError):
    """A message beside the lanes that cannot be read."""


class Presence(msgspec.Struct, kw_only=True):
    """Retained birth of an agent; its will is the same message with `online` false."""

    epoch: int
    online: bool
    software: str = ""


class ModelReport(msgspec.Struct, kw_only=True):
    """A model that an agent can run now."""

    name: str
    version: str
    provider: str
    """The execution provider that really runs."""
    wanted: str = ""
    """The provider that should run; differs from `provider` when something fell back."""
    items_per_s: float = 0.0
    """Measured; 0 before the first batch."""
    loaded: bool = True
    """Whether it is in memory; if not, it made room for others, and its next task brings it back."""


class LeaseReport(msgspec.Struct, kw_only=True, array_like=True):
    """A lease that an agent holds. It is renewed when `progress` moved, not because it is named."""

    task_id: str
    attempt: int
    progress: int
    """Items done: of the task once it runs, of the whole agent while the task waits its turn."""
    done: int = 0
    """Items of the task that are done, those before this attempt included."""
    running_s: float = 0.0
    """Seconds since the last item boundary of a task that runs, which are lost if it stops now; 0 while it
    waits."""


class LaneReport(msgspec.Struct, kw_only=True):
    """The sender's side of one up lane's ledger."""

    lane: str
    numbered: int
    acknowledged: int


class TrialReport(msgspec.Struct, kw_only=True):
    """How an agent stands with the new version of a rollout that exposes it."""

    rollout: str
    """Its id, as a UUID is written."""
    state: str
    """A `shared.rollouts.trials.State`, or a word that a newer agent has for it."""
    reason: str = ""
    """Why it was refused or rolled back here."""
    compared: int = 0
    """Shadowed jobs with an outcome of both versions."""
    agreed: int = 0
    """Those of them on which both gave the same."""
    shadow_failed: int = 0
    """Those of them that failed on the new version alone."""
    shadow_dropped: int = 0
    """Jobs that were to be shadowed and were not, since the agent had other work or no room for more."""
    unrecorded: int = 0
    """Items that failed on the new version in attempts at the hub's tasks: another may follow, and no result
    tells of them."""
    life: int = 0
    """Of these counts: another number when they have begun again at nothing, as they do at each start of the
    agent; 0: of one that does not say."""


class Telemetry(msgspec.Struct, kw_only=True):
    """What an agent says of itself every few seconds, and at once when its capacity changes."""

    epoch: int
    sequence: int
    """Counts up from the agent's start; an older one that arrives late is dropped."""
    capacity: int
    """How many of the hub's tasks it is ready to hold at one time; credits are this less those it holds."""
    labels: dict[str, str] = {}
    """What selectors may ask for; beside them the hub knows its `site` and, as `agent`, its name."""
    models: list[ModelReport] = []
    leases: list[LeaseReport] = []
    lanes: list[LaneReport] = []
    trials: list[TrialReport] = []
    """Of the rollouts that expose it."""
    queued: int = 0
    """Tasks waiting here, of devices and of the hub."""
    queued_items: int = 0
    running: int = 0
    predicted_wait_s: float = 0.0
    """How long a task of middle priority would wait here now."""
    jobs_total: int = 0
    rejected_total: int = 0
    replies_total: int = 0
    items_total: int = 0
    failed_total: int = 0
    overflowed_total: int = 0
    reclaimed_total: int = 0
    items_per_s: float = 0.0
    to_sync: int = 0
    """Records that the hub has not acknowledged."""
    journal_bytes: int = 0
    link_up_s: float = 0.0
    """Since its link to the cloud's broker was last connected; 0 while it is not."""
    down_bytes_per_s: float = 0.0
    """Of the link from the hub to here, measured; 0 until it has carried a large batch."""
    clock_offset_us: int | None = None
    clock_error_us: int | None = None


class Ack(msgspec.Struct, kw_only=True):
    """The receiver's cursor of one lane."""

    lane: str
    cursor: int
    rewind: bool = False
    """True if a gap was seen: send again from the cursor on."""
    echo_us: int = 0
    """`sent_us` of the batch that this answers, 0 if none."""


class Acks(msgspec.Struct, kw_only=True):
    """Cursors of an agent's lanes; what `up/ack` and `down/ack` carry."""

    epoch: int
    acks: list[Ack]
    sent_us: int = 0
    """The wall clock of whoever sends this, for the other side's measure of its offset."""


_Signal = TypeVar("_Signal", Presence, Telemetry, Acks)
_encoder: Final = msgspec.json.Encoder()
_decoders: Final = {kind: msgspec.json.Decoder(kind) for kind in (Presence, Telemetry, Acks)}


def encode(signal: Presence | Telemetry | Acks) -> bytes:
    return _encoder.encode(signal)


def decode(kind: type[_Signal], payload: bytes) -> _Signal:
    """The signal in a message; SignalError says what is wrong with it."""
    try:
        signal = _decoders[kind].decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignalError(f"not a {kind.__name__} message: {error}") from None
    assert isinstance(signal, kind)
    return signal
