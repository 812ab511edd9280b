"""The files of named SQL blocks."""

from pathlib import Path

import pytest

from cloud_hub.store import sql

FILES = sorted(path.stem for path in Path(sql.__file__).parent.glob("*.sql"))


@pytest.mark.parametrize("noun", FILES)
def test_every_file_holds_blocks_without_comments(noun: str) -> None:
    """Comments are for readers: none is sent to the server, and no block is empty."""
    blocks = sql.load(noun)
    assert blocks
    for name, block in blocks.items():
        assert block.strip(), name
        assert b"--" not in block, name


def test_a_name_stands_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two blocks of one name in a file are refused, so that none hides the other."""
    (tmp_path / "twice.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    monkeypatch.setattr(sql, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match="two blocks named 'one'"):
        sql.load("twice")
