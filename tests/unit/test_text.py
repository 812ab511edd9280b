"""Text of graphs that give a character for each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import models, outcomes, outputs, postprocess
from tests import readings

LETTERS = "abc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reader")
    (made / "letters.txt").write_text("\n".join(LETTERS) + "\n")
    return made


def model(folder: Path, more: str = "") -> models.Model:
    output = f'[[outputs]]\nname = "y"\nkind = "ctc"\ndictionary = "letters.txt"\n{more}\n'
    return readings.model(readings.image() + output, folder)


def steps(path: str, alphabet: str, chance: float = 0.7) -> npt.NDArray[np.float32]:
    """The numbers of a graph that sees those characters, one a step."""
    made = np.full((len(path), len(alphabet)), (1 - chance) / (len(alphabet) - 1), np.float32)
    made[range(len(path)), [alphabet.index(one) for one in path]] = chance
    return made


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("aabb", "ab"),
        ("a-ab", "aab"),
        ("--c--", "c"),
        ("abcabc", "abcabc"),
        ("aaa", "a"),
        ("----", ""),
        ("a", "a"),
    ],
)
def test_repetitions_are_one_character_and_the_blank_is_none(folder: Path, path: str, text: str) -> None:
    """Two characters that are alike have a blank between them."""
    (made,) = readings.read(model(folder), [steps(path, "-abc")[None]])
    score = pytest.approx(0.7 if text else 0.0)
    assert readings.said(made) == (text, score, {"text": text, "score": score})


def test_the_blank_may_be_the_last_and_a_space_follow_the_dictionary(folder: Path) -> None:
    """The order of the classes is the graph's: characters, then the space, and the blank at either end."""
    (made,) = readings.read(model(folder, "space = true"), [steps("a b--b", "-abc ")[None]])
    assert readings.said(made)[0] == "a bb"
    (made,) = readings.read(model(folder, 'space = true\nblank = "last"'), [steps("a b--b", "abc -")[None]])
    assert readings.said(made)[0] == "a bb"
    (made,) = readings.read(model(folder, 'blank = "last"'), [steps("ccab", "abc-")[None]])
    assert readings.said(made)[0] == "cab"


@given(paths=st.lists(st.text("-abc", min_size=9, max_size=9), min_size=1, max_size=4))
def test_a_batch_is_read_as_each_of_its_items(folder: Path, paths: list[str]) -> None:
    """For any steps, each item's text is what merging them one after the other gives."""
    made = readings.read(model(folder), [np.stack([steps(path, "-abc") for path in paths])])
    for path, one in zip(paths, made, strict=True):
        merged = [now for before, now in zip("-" + path, path, strict=False) if now != before]
        assert readings.said(one)[0] == "".join(merged).replace("-", "")


def test_the_score_is_the_mean_of_the_characters(folder: Path) -> None:
    """Of the step where each of them begins; blanks don't count. Logits become probabilities first."""
    numbers = steps("ab-", "-abc")
    numbers[1] = [0.02, 0.03, 0.9, 0.05]
    (made,) = readings.read(model(folder), [numbers[None]])
    assert readings.said(made)[1] == pytest.approx(0.8)
    (made,) = readings.read(model(folder, "softmax = true"), [np.log(numbers)[None] + 3])
    assert readings.said(made)[:2] == ("ab", pytest.approx(0.8))


def test_what_is_not_a_number_is_no_text(folder: Path) -> None:
    """NaN fails that item, and its neighbour is read."""
    numbers = np.stack([steps("ab", "-abc")] * 2)
    numbers[0, 1, 2] = np.nan
    for more in ("", "softmax = true"):
        bad, good = readings.read(model(folder, more), [numbers])
        assert isinstance(bad, outcomes.ItemFailed)
        assert bad.kind is outcomes.Failure.INFERENCE_FAILED
        assert readings.said(good)[0] == "ab"


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 4), (2, 4, 4)])
def test_another_number_of_classes_is_told(folder: Path, shape: tuple[int, ...]) -> None:
    """A dictionary of another graph would write other words: the error says how many there must be."""
    tensor: Any = np.zeros(shape, np.float32)
    with pytest.raises(outputs.UnexpectedOutput, match=r"\[\d, steps, 4\] is needed"):
        postprocess.Outputs(model(folder)).read([tensor], 1)
