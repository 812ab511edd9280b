"""What an agent is told of a rollout, and how it answers."""

from __future__ import annotations

import msgspec

from shared import signals
from shared.rollouts import stages, trials

PACKAGE = trials.Package(model="defects", version="2", sha256="ab" * 32, size=7)
TRIAL = trials.Trial(
    rollout="0197a8a2-6a3f-7c1e-9b3a-4f7f3c2d1e00",
    model="defects",
    mode=stages.Mode.SPLIT,
    traffic=10.0,
    tags=(("group", "beta"),),
    new=PACKAGE,
    gates=["errors<=1%"],
)


def test_a_trial_survives_being_told_and_kept() -> None:
    """As JSON it is the same again, with what newer hubs add left aside."""
    told = msgspec.json.decode(msgspec.json.encode(TRIAL)) | {"moon": "full"}
    assert msgspec.json.decode(msgspec.json.encode(told), type=trials.Trial) == TRIAL


def test_a_trial_says_how_its_agent_is_exposed() -> None:
    """With it and a job's id the agent knows where the job goes; alone it judges from few results on."""
    assert TRIAL.exposure == stages.Exposure(stages.Mode.SPLIT, 10.0, (("group", "beta"),))
    assert TRIAL.local_min_results == trials.LOCAL_MIN_RESULTS
    assert msgspec.structs.replace(TRIAL, min_results=5).local_min_results == 5


def test_telemetry_carries_reports_of_trials() -> None:
    """Older agents send none, newer ones perhaps states that are not known here: no heartbeat is lost."""
    older = signals.decode(signals.Telemetry, b'{"epoch":1,"sequence":2,"capacity":3}')
    assert older.trials == []
    report = signals.TrialReport(
        rollout=TRIAL.rollout, state="meditating", reason="new", compared=3, agreed=2
    )
    older.trials = [report]
    assert signals.decode(signals.Telemetry, signals.encode(older)).trials == [report]
