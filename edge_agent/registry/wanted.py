"""What the hub says that an agent is to serve, as it comes from `/v1/agents/{site}/{name}/models`."""

from __future__ import annotations

import logging
import re
from typing import Final

import msgspec

from edge_agent import models
from shared import topics
from shared.rollouts import trials

log: Final = logging.getLogger(__name__)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class BadAnswer(ValueError):
    """An answer of the hub that cannot be understood."""


class Wanted(trials.Package, frozen=True, kw_only=True):
    """A package that an agent is to have."""

    @property
    def name(self) -> models.Key:
        return models.Key(self.model, self.version)


class Desired(msgspec.Struct, frozen=True):
    """All that an agent is to serve of the hub's models."""

    models: tuple[Wanted, ...]
    trials: tuple[trials.Trial, ...] = ()
    """Of these a second version is tried, beside the one above or in its place."""


class _Answer(msgspec.Struct):
    models: tuple[Wanted, ...]
    trials: tuple[msgspec.Raw, ...] = ()


def of(package: trials.Package) -> Wanted:
    """The package of a trial."""
    return Wanted(**msgspec.structs.asdict(package))


def parse(body: bytes) -> Desired:
    """The desired state in an answer, or in the file that keeps one. Raises BadAnswer."""
    try:
        read = msgspec.json.decode(body, type=_Answer)
        tried = tuple(found for raw in read.trials if (found := _trial(raw)) is not None)
        for one in (*read.models, *(one for trial in tried for one in (trial.new, trial.old) if one)):
            topics.check_name(one.model, "model")
            topics.check_name(one.version, "version")
            if not _SHA256.fullmatch(one.sha256) or one.size < 0:
                raise BadAnswer(f"{one}: {one.sha256!r} with {one.size} bytes is no package")
    except (msgspec.DecodeError, topics.BadTopic) as error:
        raise BadAnswer(str(error)) from None
    for names in ([one.model for one in read.models], [trial.model for trial in tried]):
        if len(set(names)) < len(names):
            raise BadAnswer("a model is there twice")
    return Desired(read.models, tried)


def _trial(raw: msgspec.Raw) -> trials.Trial | None:
    """A trial, if this agent understands it: the hub may be newer, and `models` says enough."""
    try:
        found = msgspec.json.decode(raw, type=trials.Trial)
    except msgspec.DecodeError as error:
        log.warning("a trial that is not understood is left out: %s", error)
        return None
    if {found.model} != {one.model for one in (found.new, found.old) if one is not None}:
        raise BadAnswer(f"the trial of {found.model} has packages of other models")
    return found
