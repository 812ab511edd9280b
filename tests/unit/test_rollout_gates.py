"""Gates: what they say in text, and when they pass, fail or stay open."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.rollouts import gates, measures

ERRORS, LATENCY, DRIFT, AGREEMENT = gates.DEFAULT
PASSED, FAILED, OPEN = gates.Verdict.PASSED, gates.Verdict.FAILED, gates.Verdict.OPEN


def version(
    items: int,
    failed: int = 0,
    run_us: float = 1000.0,
    labels: str = "ab",
    compared: int = 0,
    agreed: int = 0,
) -> measures.Measures:
    """Measures of so many items, of which some failed; those that did not all took `run_us`."""
    made = measures.Measures(compared=compared, agreed=agreed)
    for number in range(items):
        made.add(run_us, labels[number % len(labels)], failed=number < failed)
    return made


def verdict(
    gate: gates.Gate, new: measures.Measures, old: measures.Measures | None = None, min_results: int = 100
) -> gates.Verdict:
    (judged,) = gates.judge([gate], new, version(1000) if old is None else old, min_results)
    assert judged.gate == gate
    assert str(gate.kind) in judged.said
    return judged.verdict


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("errors<=1%", gates.Gate(gates.Kind.ERRORS, 1.0)),
        ("errors <= 0.5 %", gates.Gate(gates.Kind.ERRORS, 0.5)),
        ("latency_p95<=1.2x", gates.Gate(gates.Kind.LATENCY_P95, 1.2)),
        ("drift<=0.1", gates.Gate(gates.Kind.DRIFT, 0.1)),
        ("agreement>=98%", gates.Gate(gates.Kind.AGREEMENT, 98.0)),
    ],
)
def test_a_gate_says_what_is_allowed(text: str, gate: gates.Gate) -> None:
    """Limits are in the unit in which they are written."""
    assert gates.parse(text) == gate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "errors",
        "errors<=1",
        "errors>=1%",
        "errors<1%",
        "errors<=101%",
        "errors<=1.2.3%",
        "latency_p95<=1.2",
        "latency_p95<=0x",
        "latency_p99<=1x",
        "drift<=2",
        "drift<=0.1%",
        "agreement<=98%",
        "speed<=1x",
    ],
)
def test_what_is_no_gate_is_refused_with_words(text: str) -> None:
    """The message shows how a gate is written, or what a limit may be."""
    with pytest.raises(gates.BadGate, match=r"errors|at most|like"):
        gates.parse(text)


@given(kind=st.sampled_from(gates.Kind), share=st.floats(0, 1, exclude_min=True))
def test_a_gate_is_read_back_as_it_was_written(kind: gates.Kind, share: float) -> None:
    """Text and JSON are as good as the value."""
    gate = gates.Gate(kind, share * (100 if kind in (gates.Kind.ERRORS, gates.Kind.AGREEMENT) else 1) or 1.0)
    assert gates.parse(str(gate)) == gate
    assert msgspec.json.decode(msgspec.json.encode(gate), type=gates.Gate) == gate


def test_gates_of_newer_software_are_passed_over() -> None:
    """An agent judges by those that it understands."""
    assert gates.known(["errors<=1%", "fairness<=3y", "drift<=0.2"]) == [ERRORS, DRIFT]


@pytest.mark.parametrize(
    ("items", "failed", "expected"),
    [
        (0, 0, OPEN),
        (9, 9, OPEN),  # too early for any rate
        (10, 2, OPEN),  # two bad jobs are bad jobs
        (10, 3, FAILED),
        (99, 0, OPEN),
        (100, 1, PASSED),
        (100, 2, OPEN),  # 1 % is within what two in a hundred may mean
        (100, 5, FAILED),
        (1000, 10, PASSED),
        (1000, 12, OPEN),
        (1000, 30, FAILED),
    ],
)
def test_errors(items: int, failed: int, expected: gates.Verdict) -> None:
    """Up to 1 % passes once a hundred are there; what chance cannot explain fails, many failures at once."""
    assert verdict(ERRORS, version(items, failed)) is expected


@pytest.mark.parametrize(
    ("run_us", "items", "before", "expected"),
    [
        (1000, 100, 1000, PASSED),
        (1400, 100, 1000, PASSED),
        (3000, 100, 1000, FAILED),
        (3000, 99, 1000, OPEN),
        (3000, 1000, 99, OPEN),
        (1000, 1000, 0, OPEN),
        (100, 100, 100, PASSED),
    ],
)
def test_latency(run_us: float, items: int, before: int, expected: gates.Verdict) -> None:
    """It is against the old version, and needs results of both."""
    assert verdict(LATENCY, version(items, run_us=run_us), version(before)) is expected


def test_a_tail_of_few_runs_is_no_proof() -> None:
    """Where an old run in twenty-five was slow anyway, a new version with more of those may be no slower."""
    old, new = version(96), version(70)
    old.merge(version(4, run_us=9000))
    new.merge(version(30, run_us=9000))
    assert verdict(LATENCY, new, old) is OPEN
    new.merge(version(500, run_us=20_000))
    assert verdict(LATENCY, new, old) is FAILED


@pytest.mark.parametrize(
    ("labels", "items", "before", "expected"),
    [
        ("ab", 100, 100, PASSED),
        ("ba", 1000, 100, PASSED),
        ("aaab", 100, 1000, OPEN),  # a quarter of the labels moved: likely, and not sure yet
        ("a", 1000, 1000, FAILED),
        ("x", 100, 100, FAILED),
        ("x", 99, 1000, OPEN),
        ("ab", 1000, 99, OPEN),
    ],
)
def test_drift(labels: str, items: int, before: int, expected: gates.Verdict) -> None:
    """Other labels fail, surely so; the same ones pass however often each was asked."""
    assert verdict(DRIFT, version(items, labels=labels), version(before)) is expected


@pytest.mark.parametrize(
    ("compared", "agreed", "expected"),
    [(5, 0, OPEN), (10, 9, OPEN), (10, 3, FAILED), (100, 95, PASSED), (100, 93, OPEN), (100, 85, FAILED)],
)
def test_agreement(compared: int, agreed: int, expected: gates.Verdict) -> None:
    """At least 95 % of a hundred comparisons; far fewer fail early."""
    assert verdict(AGREEMENT, version(0, compared=compared, agreed=agreed)) is expected


def test_nobody_waits_for_what_cannot_be_judged() -> None:
    """Agreement is needed where jobs are shadowed, the others where the new version answers, and latency and
    drift where there is an old version."""

    def needed(old: measures.Measures | None, **how: bool) -> list[bool]:
        return [judged.needed for judged in gates.judge(gates.DEFAULT, version(0), old, 100, **how)]

    assert needed(version(0)) == [True, True, True, False]
    assert needed(version(0), shadowed=True) == [True] * 4
    assert needed(version(0), answering=False, shadowed=True) == [False, False, False, True]
    assert needed(None) == [True, False, False, False]


def test_what_is_not_needed_may_fail_all_the_same() -> None:
    """A stage that only shadows is stopped by failures where stages before it have the new version serve."""
    new = version(100, failed=50, compared=100, agreed=100)
    errors, *_ = gates.judge([ERRORS], new, None, 100, answering=False, shadowed=True)
    assert (errors.verdict, errors.needed) == (FAILED, True)


def test_a_judgement_says_what_was_seen_and_what_is_allowed() -> None:
    """One sentence with value, evidence and limit."""
    judged = gates.judge(gates.DEFAULT, version(200, run_us=2000), version(300), 100, shadowed=True)
    assert [one.said for one in judged] == [
        "errors 0% of 200 results, within errors<=1%",
        "latency_p95 2.00x (1.97 ms against 0.985 ms) of 200 results, beyond latency_p95<=1.5x",
        "drift 0.00 of 200 results, within drift<=0.2",
        "agreement: no shadowed jobs yet, 100 are needed",
    ]
    assert [one.evidence for one in judged] == [200, 200, 200, 0]
    assert judged[3].value is None


versions = st.builds(
    version,
    items=st.integers(0, 120),
    failed=st.integers(0, 20),
    run_us=st.floats(100, 10_000),
    labels=st.sampled_from(["ab", "a", "xyz", "abcdefghij"]),
    compared=st.just(100),
    agreed=st.integers(0, 100),
)


@given(new=versions, old=st.one_of(st.none(), versions), min_results=st.integers(1, 150))
def test_a_gate_that_passes_has_the_evidence_and_is_within_its_limit(
    new: measures.Measures, old: measures.Measures | None, min_results: int
) -> None:
    """Whatever was measured: nothing passes by accident, and nothing fails that is within its limit."""
    for judged in gates.judge(gates.DEFAULT, new, old, min_results):
        if judged.verdict is OPEN:
            continue
        assert judged.value is not None
        at_least = judged.gate.kind is gates.Kind.AGREEMENT
        within = judged.value >= judged.gate.limit if at_least else judged.value <= judged.gate.limit
        assert within == (judged.verdict is PASSED)
        assert judged.evidence >= (
            min_results if judged.verdict is PASSED else min(min_results, gates.EARLIEST)
        )


@given(new=versions, min_results=st.integers(1, 150))
def test_a_version_passes_what_it_is_itself_compared_with(new: measures.Measures, min_results: int) -> None:
    """The same measures are no drift and no slower, and fail nothing that is relative."""
    for judged in gates.judge([LATENCY, DRIFT], new, new, min_results):
        assert judged.verdict is not FAILED
