"""Arrays written as text come out of PostgreSQL as they were."""

import random
import string
from datetime import UTC, datetime, timedelta

import pytest

from cloud_hub.store import arrays, pool

AWKWARD = [
    "",
    " ",
    "NULL",
    "null",
    "{}",
    "{a,b}",
    '"',
    '\\"',
    "\\",
    "\\\\n",
    "a,b",
    "line\nbreak",
    "\t",
    "ü漢😀",
    "'",
]


@pytest.fixture
def drawn() -> random.Random:
    return random.Random(7)


async def _back(database: str, written: str | None, kind: str) -> list[object]:
    async with await pool.connect(database) as connection:
        cursor = await connection.execute(
            f"SELECT unnest(%(written)s::{kind}[])".encode(), {"written": written}
        )
        return [value for (value,) in await cursor.fetchall()]


async def test_any_text_is_written(database: str, drawn: random.Random) -> None:
    """Nothing in a text is taken for a brace, a quote or a NULL, and no NULL for a text."""
    letters = string.printable + "\\\"{},'ß漢"
    texts: list[str | None] = [*AWKWARD, None]
    texts += ["".join(drawn.choices(letters, k=drawn.randrange(12))) for _ in range(2000)]
    assert await _back(database, arrays.texts(texts), "text") == texts


async def test_numbers_ids_and_instants_are_written(database: str, drawn: random.Random) -> None:
    """To the last digit and the last microsecond, with NULLs where nothing is said."""
    whole: list[float | None] = [0, -1, 2**62, None, 7]
    broken: list[float | None] = [0.1, 1e-300, -1.5, None, 1e300, float("inf")]
    ids = [drawn.randbytes(16) for _ in range(100)]
    began = datetime(2026, 11, 23, 9, 30, 0, 123456, tzinfo=UTC)
    instants = [began, None, began + timedelta(days=400), began.replace(microsecond=0)]
    assert await _back(database, arrays.numbers(whole), "bigint") == whole
    assert await _back(database, arrays.numbers(broken), "float8") == broken
    assert await _back(database, arrays.ids(ids), "uuid") == ids
    assert await _back(database, arrays.instants(instants), "timestamptz") == instants


async def test_no_values_are_no_rows(database: str) -> None:
    """An empty array has no elements, and neither has one of which only NULLs are left out."""
    assert await _back(database, arrays.texts([]), "text") == []
    assert arrays.if_any(arrays.texts, [None, None]) is None
    assert arrays.if_any(arrays.texts, [None, "a"]) == '{NULL,"a"}'
