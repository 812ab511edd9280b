"""Text of graphs that give a character for each step (CTC), decoded greedily."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent import outputs
from shared import manifests


def read(
    output: manifests.Ctc, alphabet: Sequence[str], array: outputs.Array, count: int
) -> list[outputs.Reading | None]:
    """The text of each item; `alphabet` has what each of the graph's classes stands for.

    The best path of Graves et al., Connectionist temporal classification (2006): the best class of each step,
    without repetitions and then without blanks.
    """
    if array.ndim != 3 or len(array) != count or array.shape[2] != len(alphabet):
        raise outputs.UnexpectedOutput.of(output.name, array, (count, "steps", len(alphabet)))
    best = array.argmax(axis=2)
    scores = np.take_along_axis(array, best[..., None], axis=2)[..., 0].astype(np.float64)
    if output.softmax:
        with np.errstate(invalid="ignore"):
            scores = 1 / np.exp(array - scores[..., None]).sum(axis=2)
    written = best != (0 if output.blank == "first" else len(alphabet) - 1)
    written[:, 1:] &= best[:, 1:] != best[:, :-1]
    made: list[outputs.Reading | None] = []
    for places, chances, steps in zip(best, scores, written, strict=True):
        if not np.isfinite(chances).all():
            made.append(None)
            continue
        text = "".join([alphabet[place] for place in places[steps].tolist()])
        score = float(chances[steps].mean()) if steps.any() else 0.0
        made.append(outputs.Reading(text, score, {"text": text, "score": round(score, outputs.DECIMALS)}))
    return made
