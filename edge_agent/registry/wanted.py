"""What the hub says that an agent is to serve, as it comes from `/v1/agents/{site}/{name}/models`."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from edge_agent import models
from shared import topics

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class BadAnswer(ValueError):
    """An answer of the hub that cannot be understood."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model, and all that is needed to fetch and verify it."""

    model: str
    version: str
    sha256: str
    """Of the package's archive."""
    size: int
    """Bytes of the archive."""
    key: str | None = None
    """The public key that it is said to be signed with; None: it is not signed."""
    signature: str | None = None

    @property
    def name(self) -> models.Key:
        return models.Key(self.model, self.version)

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class Desired(msgspec.Struct, frozen=True):
    """All that an agent is to serve of the hub's models."""

    models: tuple[Wanted, ...]


def parse(body: bytes) -> Desired:
    """The desired state in an answer, or in the file that keeps one. Raises BadAnswer."""
    try:
        read = msgspec.json.decode(body, type=Desired)
        for one in read.models:
            topics.check_name(one.model, "model")
            topics.check_name(one.version, "version")
            if not _SHA256.fullmatch(one.sha256) or one.size < 0:
                raise BadAnswer(f"{one}: {one.sha256!r} with {one.size} bytes is no package")
    except (msgspec.DecodeError, topics.BadTopic) as error:
        raise BadAnswer(str(error)) from None
    if len({one.model for one in read.models}) < len(read.models):
        raise BadAnswer("a model is there twice")
    return read
