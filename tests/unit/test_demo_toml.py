"""Settings files of the demo's programs."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from demo import toml

names = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
values = st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(-1e300, 1e300)
documents = st.dictionaries(names, values | st.dictionaries(names, values, max_size=4), max_size=5)


@given(documents)
def test_what_is_written_is_read_back(document: toml.Document) -> None:
    """Any settings survive the file, whatever is in their text."""
    assert tomllib.loads(toml.dumps(document)) == document


def test_settings_are_laid_over_each_other_one_by_one() -> None:
    """A change in a section leaves the rest of it alone."""
    base: toml.Document = {"name": "a", "http": {"host": "h", "port": 1}}
    assert toml.merged(base, {"http": {"port": 2}}) == {"name": "a", "http": {"host": "h", "port": 2}}
