"""Gates: what the new version's measures must be like before more agents are exposed to it.

    errors<=1%            failures per result
    latency_p95<=1.5x     run time per item, against the old version's on the same agents
    drift<=0.2            total variation distance between the labels of the two, 0 to 1
    agreement>=95%        shadowed jobs on which both gave the same

A gate PASSED if there are results enough and the measured value is within the limit. It FAILED if the value
is beyond the limit by more than chance explains: with its whole 95 % interval (`evidence`). Between the two
it is OPEN, and more results will tell. So neither one bad job nor an unlucky dozen takes a version back,
and one that is broken is seen at once.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from shared.rollouts import evidence, measures, numbers

EARLIEST: Final = 10
"""From so many results on a rate may fail its gate, though `min_results` are not there."""
_MISHAPS: Final = 3
"""Fewer bad results than this fail no gate before `min_results`: a job that is no good fails anywhere."""


class BadGate(ValueError):
    """A gate that cannot be read or makes no sense; the message says what is wrong with it."""


class Kind(enum.StrEnum):
    """What a gate looks at."""

    ERRORS = "errors"
    LATENCY_P95 = "latency_p95"
    DRIFT = "drift"
    AGREEMENT = "agreement"


class _Form(NamedTuple):
    """How a kind is written, and which limits make sense."""

    sign: str
    unit: str
    most: float
    example: str


_FORMS: Final = {
    Kind.ERRORS: _Form("<=", "%", 100, "errors<=1%"),
    Kind.LATENCY_P95: _Form("<=", "x", 1000, "latency_p95<=1.5x"),
    Kind.DRIFT: _Form("<=", "", 1, "drift<=0.2"),
    Kind.AGREEMENT: _Form(">=", "%", 100, "agreement>=95%"),
}
_TEXT: Final = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=)\s*([0-9.]+)\s*([%x]?)\s*")


class Gate(msgspec.Struct, frozen=True):
    """A limit on one kind of measure. Raises BadGate where the limit makes no sense."""

    kind: Kind
    limit: float
    """As written: percent of errors and agreement, times of latency, distance of drift."""

    def __post_init__(self) -> None:
        most = _FORMS[self.kind].most
        if not 0 <= self.limit <= most or (self.kind is Kind.LATENCY_P95 and not self.limit):
            raise BadGate(
                f"{self.kind} cannot be held to {self.limit:g}: at most {most:g}, and no less than 0"
            )

    def __str__(self) -> str:
        """The one way of writing it: `parse` reads it back as the same gate."""
        form = _FORMS[self.kind]
        return f"{self.kind}{form.sign}{numbers.plain(self.limit)}{form.unit}"


DEFAULT: Final = (
    Gate(Kind.ERRORS, 1.0),
    Gate(Kind.LATENCY_P95, 1.5),
    Gate(Kind.DRIFT, 0.2),
    Gate(Kind.AGREEMENT, 95.0),
)


class Verdict(enum.StrEnum):
    """How a gate stands."""

    PASSED = "passed"
    FAILED = "failed"
    OPEN = "open"


class Judgement(msgspec.Struct, frozen=True):
    """How one gate stands, and why."""

    gate: Gate
    verdict: Verdict
    value: float | None
    """In the unit of the gate's limit; None while there is nothing to measure."""
    evidence: int
    """Results, or comparisons, that it rests on; of two versions the fewer."""
    said: str
    """One sentence for people."""
    needed: bool = True
    """False: there is nothing here that this gate could judge, and nobody is to wait for it."""


def parse(text: str) -> Gate:
    """The gate that `text` describes. Raises BadGate."""
    found = _TEXT.fullmatch(text)
    try:
        kind = Kind(found[1]) if found else None
    except ValueError:
        kind = None
    if found is None or kind is None:
        forms = ", ".join(form.example for form in _FORMS.values())
        raise BadGate(f"{text!r} is no gate; there are {forms}")
    form, limit = _FORMS[kind], numbers.parse(found[3])
    if (found[2], found[4]) != (form.sign, form.unit) or limit is None:
        raise BadGate(f"{text!r}: write it like {form.example}")
    return Gate(kind, limit)


def known(texts: Iterable[str]) -> list[Gate]:
    """Of gates that may come from newer software those that this one understands."""
    understood = []
    for text in texts:
        with contextlib.suppress(BadGate):
            understood.append(parse(text))
    return understood


def judge(
    gates: Sequence[Gate],
    new: measures.Measures,
    old: measures.Measures | None,
    min_results: int,
    *,
    answering: bool = True,
    shadowed: bool | None = None,
) -> list[Judgement]:
    """How each gate stands, in their order.

    `new` and `old` are of the same agents; `old` is None if there is no old version to compare with.
    `answering` says whether the new version answers jobs at all, `shadowed` whether any are shadowed (None:
    if any was compared). A gate that this leaves nothing to judge is not needed; it may still fail by what
    was measured before.
    """
    shadowed = new.compared > 0 if shadowed is None else shadowed
    judged = []
    for gate in gates:
        match gate.kind:
            case Kind.ERRORS:
                judgement = _errors(gate, new, min_results)
            case Kind.LATENCY_P95:
                judgement = _latency(gate, new, old, min_results)
            case Kind.DRIFT:
                judgement = _drift(gate, new, old, min_results)
            case Kind.AGREEMENT:
                judgement = _agreement(gate, new, min_results)
        concerned = shadowed if gate.kind is Kind.AGREEMENT else answering
        if not concerned and judgement.verdict is not Verdict.FAILED:
            judgement = msgspec.structs.replace(judgement, needed=False)
        judged.append(judgement)
    return judged


def _errors(gate: Gate, new: measures.Measures, min_results: int) -> Judgement:
    return _rate(gate, new.failed, new.failed, new.items, min_results, "results")


def _agreement(gate: Gate, new: measures.Measures, min_results: int) -> Judgement:
    disagreed = new.compared - new.agreed
    return _rate(gate, new.agreed, disagreed, new.compared, min_results, "shadowed jobs")


def _rate(gate: Gate, count: int, bad: int, total: int, min_results: int, of: str) -> Judgement:
    """A percentage of which `count` in `total` were seen; `bad` of these speak against the version."""
    if not total:
        return Judgement(gate, Verdict.OPEN, None, 0, f"{gate.kind}: no {of} yet, {min_results} are needed")
    value = 100 * count / total
    low, high = evidence.wilson(count, total)
    at_most = _FORMS[gate.kind].sign == "<="
    within = value <= gate.limit if at_most else value >= gate.limit
    beyond = 100 * low > gate.limit if at_most else 100 * high < gate.limit
    early = total >= EARLIEST and bad >= _MISHAPS
    verdict = _verdict(within, beyond and (early or total >= min_results), total, min_results)
    return Judgement(
        gate, verdict, value, total, _say(gate, verdict, f"{value:.3g}%", total, of, min_results)
    )


def _latency(
    gate: Gate, new: measures.Measures, old: measures.Measures | None, min_results: int
) -> Judgement:
    if old is None:
        return _alone(gate, new)
    fewer = min(new.items, old.items)
    mine, theirs = new.quantile(0.95), old.quantile(0.95)
    ours, others = evidence.quantile(new, 0.95), evidence.quantile(old, 0.95)
    if mine is None or theirs is None or ours is None or others is None:
        return _both_needed(gate, fewer, min_results)
    value = mine / theirs
    beyond = fewer >= min_results and ours.low > gate.limit * others.high
    verdict = _verdict(value <= gate.limit, beyond, fewer, min_results)
    what = f"{value:.2f}x ({_milliseconds(mine)} against {_milliseconds(theirs)})"
    return Judgement(gate, verdict, value, fewer, _say(gate, verdict, what, fewer, "results", min_results))


def _drift(gate: Gate, new: measures.Measures, old: measures.Measures | None, min_results: int) -> Judgement:
    if old is None:
        return _alone(gate, new)
    fewer = min(new.items, old.items)
    found = evidence.drift(new, old)
    if found is None:
        return _both_needed(gate, fewer, min_results)
    value = found.likely
    beyond = fewer >= min_results and found.seen > gate.limit + found.at_most_by_chance
    verdict = _verdict(value <= gate.limit, beyond, fewer, min_results)
    said = _say(gate, verdict, f"{value:.2f}", fewer, "results", min_results)
    return Judgement(gate, verdict, value, fewer, said)


def _verdict(within: bool, beyond: bool, seen: int, min_results: int) -> Verdict:
    if beyond:
        return Verdict.FAILED
    return Verdict.PASSED if within and seen >= min_results else Verdict.OPEN


def _say(gate: Gate, verdict: Verdict, value: str, seen: int, of: str, min_results: int) -> str:
    said = f"{gate.kind} {value} of {seen} {of}"
    match verdict:
        case Verdict.PASSED:
            return f"{said}, within {gate}"
        case Verdict.FAILED:
            return f"{said}, beyond {gate}"
        case Verdict.OPEN if seen < min_results:
            return f"{said}, {min_results} are needed for {gate}"
        case Verdict.OPEN:
            return f"{said}, too near to tell yet by {gate}"


def _alone(gate: Gate, new: measures.Measures) -> Judgement:
    said = f"{gate.kind}: no old version to compare with"
    return Judgement(gate, Verdict.OPEN, None, new.items, said, needed=False)


def _both_needed(gate: Gate, fewer: int, min_results: int) -> Judgement:
    said = f"{gate.kind}: {fewer} results of each version to compare, {min_results} are needed"
    return Judgement(gate, Verdict.OPEN, None, fewer, said)


def _milliseconds(us: float) -> str:
    return f"{us / 1000:.3g} ms"
