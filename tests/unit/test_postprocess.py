"""The graph's numbers to a label, a score and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent import models, outcomes, outputs, postprocess
from shared import manifests

KINDS = manifests.Classification(name="kind", labels=("ok", "scratch", "dent"), top_k=2)


def read(output: manifests.Output | list[manifests.Output], *values: Any) -> list[outcomes.Outcome]:
    made = [value if isinstance(value, np.ndarray) else np.array(value, np.float32) for value in values]
    manifest = manifests.Manifest(
        name="m",
        version="1",
        inputs=(manifests.TensorInput(name="x", shape=(1,)),),
        outputs=tuple(output if isinstance(output, list) else [output]),
    )
    model = models.Model(manifest, Path("m"), Path("m/model.onnx"), "0" * 64)
    return postprocess.Outputs(model).read(made, len(made[0]))


def prediction(made: outcomes.Outcome) -> tuple[str | None, Any, Any]:
    """Its label, score and JSON."""
    assert isinstance(made, outcomes.Prediction), made
    assert made.output is not None
    return made.label, made.score, msgspec.json.decode(made.output)


def test_the_largest_class_is_the_label() -> None:
    """The label and score are the best class's, the JSON ranks the best `top_k`."""
    first, second = read(KINDS, [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    assert prediction(first) == (
        "scratch",
        pytest.approx(0.7),
        [{"label": "scratch", "score": 0.7}, {"label": "dent", "score": 0.2}],
    )
    assert prediction(second)[0] == "ok"


def test_of_equal_classes_the_first_wins() -> None:
    """A tie is decided by the manifest's order, the same at every run."""
    (made,) = read(KINDS, [[0.4, 0.2, 0.4]])
    assert prediction(made)[0] == "ok"
    many = manifests.Classification(name="y", labels=tuple(map(str, range(100))), top_k=3)
    (made,) = read(many, [[1.0] * 100])
    assert [one["label"] for one in prediction(made)[2]] == ["0", "1", "2"]


@given(
    numbers=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 60)), elements=st.floats(-100, 100, width=32)
    ),
    top_k=st.integers(1, 70),
)
def test_the_ranking_is_the_sorted_one(numbers: npt.NDArray[np.float32], top_k: int) -> None:
    """For any numbers and any k, few classes or many, the ranking is what sorting gives."""
    labels = tuple(f"c{place}" for place in range(numbers.shape[1]))
    made = read(manifests.Classification(name="y", labels=labels, top_k=top_k), numbers)
    for row, one in zip(numbers, made, strict=True):
        expected = [labels[place] for place in np.argsort(-row, kind="stable")[:top_k]]
        label, score, ranking = prediction(one)
        assert [entry["label"] for entry in ranking] == expected
        assert (label, score) == (expected[0], float(row.max()))


def test_logits_become_probabilities_where_asked() -> None:
    """With `softmax` the scores sum to one, also for numbers whose exponential overflows or vanishes."""
    output = manifests.Classification(name="kind", labels=("a", "b", "c"), top_k=3, softmax=True)
    made = read(output, [[1.0, 2.0, 3.0], [2000.0, 1999.0, -np.inf]])
    _, score, ranking = prediction(made[0])
    assert score == pytest.approx(0.66524096)
    assert sum(one["score"] for one in ranking) == pytest.approx(1, abs=1e-5)
    label, score, ranking = prediction(made[1])
    assert (label, score) == ("a", pytest.approx(0.7310586))
    assert ranking[2] == {"label": "c", "score": 0.0}


@pytest.mark.parametrize(
    ("worst", "softmax"), [(np.nan, False), (np.inf, False), (-np.inf, False), (np.nan, True), (np.inf, True)]
)
def test_what_is_not_a_number_is_no_verdict(worst: float, softmax: bool) -> None:
    """A graph that gives NaN for a part has not said "ok": that item fails, and its neighbours do not."""
    output = manifests.Classification(name="kind", labels=("ok", "bad"), softmax=softmax)
    good, bad, also_good = read(output, [[0.9, 0.1], [worst, 0.2], [0.1, 0.9]])
    assert prediction(good)[0] == "ok"
    assert prediction(also_good)[0] == "bad"
    assert isinstance(bad, outcomes.ItemFailed)
    assert bad.kind is outcomes.Failure.INFERENCE_FAILED
    assert "'kind'" in bad.reason
    (score,) = read(manifests.Scores(name="s"), [[worst]])
    assert isinstance(score, outcomes.ItemFailed)


def test_a_score_gets_its_label_by_the_threshold() -> None:
    """Below it the first label, at it or above the second; without one there is no label."""
    output = manifests.Scores(name="s", threshold=0.5, labels=("normal", "anomaly"))
    made = [prediction(one)[:2] for one in read(output, [[0.25], [0.5], [0.75]])]
    assert made == [("normal", 0.25), ("anomaly", 0.5), ("anomaly", 0.75)]
    (bare,) = read(manifests.Scores(name="s"), [0.25])
    assert prediction(bare) == (None, 0.25, {"score": 0.25})


def test_raw_numbers_are_passed_on_nested() -> None:
    """A raw output is its nested lists under its name, of any shape and type, and says no label."""
    boxes = np.arange(12, dtype=np.int64).reshape(2, 3, 2)
    made = read(manifests.Raw(name="boxes"), boxes)
    assert prediction(made[1]) == (None, None, {"boxes": boxes[1].tolist()})


def test_several_outputs_stand_under_their_names() -> None:
    """The verdict is the first output's that has one; the JSON has all of them."""
    several: list[manifests.Output] = [
        manifests.Raw(name="embedding"),
        KINDS,
        manifests.Scores(name="anomaly"),
    ]
    made = read(several, [[1.0, 2.0]], [[0.0, 1.0, 0.0]], [[0.25]])
    label, score, value = prediction(made[0])
    assert (label, score) == ("scratch", 1.0)
    assert value == {
        "embedding": [1.0, 2.0],
        "kind": [{"label": "scratch", "score": 1.0}, {"label": "ok", "score": 0.0}],
        "anomaly": {"score": 0.25},
    }


def test_an_output_of_another_shape_is_told() -> None:
    """Three labels and two numbers an item: the manifest is wrong, and the error says which output."""
    with pytest.raises(outputs.UnexpectedOutput, match=r"'kind' has shape \[1, 2\].*\[1, 3\] is needed"):
        read(KINDS, [[0.5, 0.5]])
