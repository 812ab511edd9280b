"""Selectors: which agents a task may run on, by their labels.

A selector is `key=value`, several with commas between: all must match. Every agent has the labels
`site` and `agent` (its name), and what its settings add. The equality-based form of Kubernetes' label
selectors (kubernetes.io/docs/concepts/overview/working-with-objects/labels), `=` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

RESERVED: Final = ("site", "agent")
"""Labels that every agent has, and none may set."""

_PART: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


class BadSelector(ValueError):
    """A selector or a label that cannot be read; the message says what is wrong with it."""


def parse(selector: str) -> dict[str, str]:
    """The labels that a selector asks for; '' asks for none. Raises BadSelector."""
    wanted: dict[str, str] = {}
    for term in filter(None, (term.strip() for term in selector.split(","))):
        key, equals, value = (part.strip() for part in term.partition("="))
        if not equals:
            raise BadSelector(f"{term!r} is not KEY=VALUE")
        check(key, value)
        if wanted.setdefault(key, value) != value:
            raise BadSelector(f"{key!r} is asked to be both {wanted[key]!r} and {value!r}: no agent can")
    return wanted


def normal(selector: str) -> str:
    """The one way of writing it, so that equal selectors are equal text. Raises BadSelector."""
    return ",".join(f"{key}={value}" for key, value in sorted(parse(selector).items()))


def check(key: str, value: str) -> None:
    """Raise BadSelector unless this can be a label."""
    for part in (key, value):
        if not _PART.fullmatch(part):
            raise BadSelector(
                f"{key}={value}: {part!r} is not 1 to 63 letters, digits, '.', '_', '-' or '/', "
                "a letter or digit at both ends"
            )


def matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether an agent with `labels` has all that is wanted."""
    return all(labels.get(key) == value for key, value in wanted.items())
