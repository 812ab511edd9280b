"""The small messages beside the lanes are read by older and newer peers alike."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import signals

PRESENCE: Final = signals.Presence(epoch=7, online=True, software="0.1.0")
TELEMETRY: Final = signals.Telemetry(
    epoch=2**48 - 1,
    sequence=41,
    capacity=8,
    models=[signals.ModelReport(name="m", version="3", provider="CPU", wanted="CUDA", items_per_s=812.5)],
    labels={"gpu": "a2000"},
    leases=[signals.LeaseReport(task_id="0190", attempt=2, progress=17, done=12, running_s=0.5)],
    lanes=[signals.LaneReport(lane="results.2", numbered=1_204_331, acknowledged=1_204_000)],
    queued=3,
    predicted_wait_s=0.25,
    clock_offset_us=-1500,
    clock_error_us=80,
)
ACKS: Final = signals.Acks(
    epoch=7,
    acks=[
        signals.Ack(lane="tasks.1", cursor=2**62, rewind=True, echo_us=5),
        signals.Ack(lane="x.1", cursor=0),
    ],
    sent_us=1_700_000_000_000_000,
)
SIGNALS: Final[list[Any]] = [PRESENCE, TELEMETRY, ACKS]

NEEDED: Final[dict[type[Any], set[str]]] = {
    signals.Presence: {"epoch", "online"},
    signals.Telemetry: {"epoch", "sequence", "capacity"},
    signals.Acks: {"epoch", "acks"},
}
"""What the first version of each message had: only these may be demanded of any peer, for ever."""

kinds = pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: type(signal).__name__)


def read(signal: Any, payload: bytes) -> Any:
    """What a message of the kind of `signal` says."""
    return signals.decode(type(signal), payload)


def said(signal: Any) -> dict[str, Any]:
    """A message as its JSON object."""
    fields: dict[str, Any] = json.loads(signals.encode(signal))
    return fields


@kinds
def test_a_signal_arrives_as_it_was(signal: Any) -> None:
    """Every field comes back."""
    assert read(signal, signals.encode(signal)) == signal


@kinds
def test_what_a_newer_peer_adds_is_ignored(signal: Any) -> None:
    """Fields unknown here, at every level, change nothing."""

    def add(value: Any) -> Any:
        if isinstance(value, dict):
            known = {key: inner if key == "labels" else add(inner) for key, inner in value.items()}
            return {"a-new-field": [{"deep": None}], **known}  # labels have no fields, they are data
        if isinstance(value, list) and value and not isinstance(value[0], dict | list):
            return [*value, "a new field"]  # a message that is written as an array grows at its end
        return [add(inner) for inner in value] if isinstance(value, list) else value

    newer = json.dumps(add(said(signal))).encode()
    assert b"a-new-field" in newer
    assert read(signal, newer) == signal


@kinds
def test_what_an_older_peer_lacks_has_a_default(signal: Any) -> None:
    """All but the first version's fields may be missing, and then say nothing."""
    kind = type(signal)
    needed = {name: value for name, value in said(signal).items() if name in NEEDED[kind]}
    defaults = kind(**{name: getattr(signal, name) for name in NEEDED[kind]})
    assert read(signal, json.dumps(needed).encode()) == defaults


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in sorted(names)]
)
def test_what_no_peer_may_lack_is_named(kind: type[Any], name: str) -> None:
    """A message without one of the first version's fields is an error that names both."""
    signal = next(one for one in SIGNALS if type(one) is kind)
    fields = {key: value for key, value in said(signal).items() if key != name}
    with pytest.raises(signals.SignalError, match=f"{kind.__name__}.*`{name}`"):
        read(signal, json.dumps(fields).encode())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"epoch": 7, "acks": [{"lane": "\xff", "cursor": 1}]}',
        b'{"epoch": "7", "acks": []}',
        b'{"epoch": 7, "acks": [{"lane": "x.1", "cursor": 1.5}]}',
        b'{"new": ' + b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_cannot_be_read(payload: bytes) -> None:
    """Bad JSON, bad UTF-8, wrong types and bottomless nesting are one kind of error."""
    with pytest.raises(signals.SignalError, match="not a Acks message"):
        signals.decode(signals.Acks, payload)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), signal=st.sampled_from(SIGNALS))
def test_no_damage_is_another_error(data: st.DataObject, signal: Any) -> None:
    """A message of which bytes were changed or cut off is read or refused."""
    payload = bytearray(signals.encode(signal))
    del payload[data.draw(st.integers(1, len(payload))) :]
    for _ in range(data.draw(st.integers(0, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(read(signal, bytes(payload)), type(signal))
    except signals.SignalError:
        return


def test_a_will_differs_from_its_birth_by_one_word() -> None:
    """An agent's will is its birth with `online` false: the epoch in both links them."""
    birth, will = said(PRESENCE), said(signals.Presence(epoch=7, online=False, software="0.1.0"))
    assert birth | {"online": False} == will
