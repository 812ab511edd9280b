"""The alphabet of a model that reads text, from the dictionary in its package."""

from __future__ import annotations

from pathlib import Path

from shared.manifests import outputs


def read(folder: Path, output: outputs.Ctc) -> tuple[str, ...]:
    """What each of the graph's classes stands for, the blank for nothing.

    Raises ValueError, which says what is wrong with the package in `folder`.
    """
    path = folder / output.dictionary
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{output.dictionary!r} lies outside the package; put it into {folder}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other line breaks: they are characters
    except OSError as error:
        raise ValueError(
            f"{output.dictionary!r} cannot be read ({error.strerror}); put the dictionary into {folder}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{output.dictionary!r} is not UTF-8 ({error.reason}); convert it") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{output.dictionary!r} is empty; write one character a line into it")
    characters = [line.removesuffix("\r") for line in lines]
    if output.space:
        characters.append(" ")
    return ("", *characters) if output.blank == "first" else (*characters, "")
