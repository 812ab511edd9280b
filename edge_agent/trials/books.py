"""What an agent counts of the two versions of a trial, and when that is worth a look. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from edge_agent import outcomes
from shared.rollouts import gates, measures, stages, trials

RECENT: Final = 2000
"""Results of a version that are judged together: the latest, so many at least, and at most twice as many."""
LOOK_AFTER: Final = 5
LOOK_AFTER_MOST: Final = 200
LOOK_SHARE: Final = 0.1
"""Results between two looks: this share of all so far, within those bounds. Who looks at every single one
sees chance fail, sooner or later."""


class Recent:
    """The measures of the latest results of one version."""

    def __init__(self) -> None:
        self._now = measures.Measures()
        self._before = measures.Measures()

    def ran(self, made: Iterable[outcomes.Outcome], run_us: int) -> None:
        """A batch ran."""
        self._turn()
        for one in made:
            if isinstance(one, outcomes.Prediction):
                self._now.add(run_us, one.label)
            else:
                self._now.add(run_us, None, failed=True)

    def compared(self, *, agreed: bool) -> None:
        """A job was shadowed."""
        self._turn()
        self._now.compare(agreed=agreed)

    def measures(self) -> measures.Measures:
        together = measures.Measures()
        together.merge(self._before)
        together.merge(self._now)
        return together

    def _turn(self) -> None:
        if max(self._now.items, self._now.compared) >= RECENT:
            self._before, self._now = self._now, measures.Measures()


class Books:
    """Both versions of a trial."""

    def __init__(self) -> None:
        self.new = Recent()
        self.old = Recent()
        self._results = 0
        """Of the new version, comparisons included."""
        self._look_at = LOOK_AFTER

    def ran(self, made: list[outcomes.Outcome], run_us: int, *, new: bool) -> None:
        """Items ran on one of the two, but for those that another's failure held back."""
        ran = [one for one in made if getattr(one, "kind", None) is not outcomes.Failure.NOT_RUN]
        (self.new if new else self.old).ran(ran, run_us)
        self._results += len(ran) if new else 0

    def compared(self, *, agreed: bool) -> None:
        """A job was shadowed."""
        self.new.compared(agreed=agreed)
        self._results += 1

    @property
    def worth_a_look(self) -> bool:
        """Whether there is enough since the last look."""
        return self._results >= self._look_at

    def failure(self, trial: trials.Trial) -> str | None:
        """Why this agent should go back to the old version; None as long as it should not."""
        apart = min(max(LOOK_AFTER, int(self._results * LOOK_SHARE)), LOOK_AFTER_MOST)
        self._look_at = self._results + apart
        shadows = trial.mode is stages.Mode.SHADOW
        judged = gates.judge(
            gates.known(trial.gates),
            self.new.measures(),
            self.old.measures(),
            trial.local_min_results,
            answering=not shadows,
            shadowed=shadows,
        )
        return "; ".join(one.said for one in judged if one.verdict is gates.Verdict.FAILED) or None
