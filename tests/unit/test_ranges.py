"""Parts of a content, as HTTP asks for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.api import ranges

TAG = '"sha256:ab"'


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=9-", (9, 10)),
        ("bytes=5-99", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes=1-2", (1, 3)),
        (None, None),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=4-2", None),
        ("bytes=0-1,4-5", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=1e1-", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_a_range_is_read_as_the_standard_says(header: str | None, span: tuple[int, int] | None) -> None:
    """One range of bytes is a part; several, other units and nonsense mean all of it."""
    assert ranges.asked(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={10**18}-"])
def test_a_range_behind_the_end_cannot_be_met(header: str) -> None:
    """It is told apart from a range that is nonsense."""
    with pytest.raises(ranges.Unsatisfiable):
        ranges.asked(header, 10)


@given(size=st.integers(1, 1000), first=st.integers(0, 1200), last=st.integers(0, 1200))
def test_a_part_is_what_the_same_slice_is(size: int, first: int, last: int) -> None:
    """For every content and range the part is not empty, within the content, and the slice asked for."""
    content = range(size)
    try:
        span = ranges.asked(f"bytes={first}-{last}", size)
    except ranges.Unsatisfiable:
        assert first >= size
        return
    if span is None:
        assert last < first
        return
    assert content[span.start : span.stop] == content[first : last + 1]
    assert span.size == len(content[first : last + 1]) > 0


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (None, False),
        ("", False),
        ("*", True),
        (TAG, True),
        (f"W/{TAG}", True),
        (f'"other", {TAG}', True),
        ('"sha256:cd"', False),
        ("sha256:ab", False),
    ],
)
def test_what_is_at_hand_is_not_sent_again(header: str | None, known: bool) -> None:
    """If-None-Match names one tag or several, weak ones too, or anything at all."""
    assert ranges.is_known(header, TAG) == known


@pytest.mark.parametrize(
    ("header", "same"),
    [
        (None, True),
        (TAG, True),
        ('"other"', False),
        (f"W/{TAG}", False),
        ("Wed, 21 Oct 2015 07:28:00 GMT", False),
    ],
)
def test_a_part_goes_with_the_same_content_only(header: str | None, same: bool) -> None:
    """If-Range with another tag, a weak one or a date means that all is sent."""
    assert ranges.is_same(header, TAG) == same
