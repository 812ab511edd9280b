"""What is to be done, from what is wanted, what is on disk and what is loaded: a pure decision.

The rules, in their order:

1. A version that is wanted neither first nor beside that goes when the one that is wanted first of its model
   is loaded, or when the model is wanted no longer. Until then it goes on, whatever becomes of the new one.
2. What is wanted and on disk is loaded. A model of which nothing is loaded, and whose wanted version is not
   there yet, is served meanwhile by the version that was served last.
3. Of each model the version that was served last stays on disk, to go back to; what else nobody wants goes.
4. What is wanted and not on disk is fetched, first what is wanted first. What is kept to go back to makes
   room for it, the oldest first.

Models of the agent's own folder are not touched, and need nothing from the hub.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from edge_agent import models
from edge_agent.registry.wanted import Wanted


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A package on disk, which was verified when it came."""

    wanted: Wanted
    """As the hub described it."""
    served_at: float = 0.0
    """When it was loaded last, seconds since 1970; 0: never."""
    deaths: int = 0
    """How often in a row the agent died while it was loading this."""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What there is."""

    wanted: Collection[Wanted] | None
    """Of each model the version that is wanted first. None: the hub has never said."""
    beside: Collection[Wanted] = ()
    """Versions that are wanted beside those, of the same models."""
    own: Collection[models.Key] = ()
    """Of the agent's own folder."""
    stored: Mapping[str, Stored] = {}
    """By SHA-256."""
    loaded: Mapping[models.Key, str] = {}
    """Of the hub's packages: the SHA-256 of each."""
    blocked: Collection[Wanted] = ()
    """Not to be tried now."""
    max_bytes: int = 8 << 30
    """For all packages on disk."""
    max_package_bytes: int = 2 << 30
    """For one."""


class Unload(msgspec.Struct, frozen=True):
    """Serve it no longer."""

    key: models.Key


class Load(msgspec.Struct, frozen=True):
    """Serve what is on disk."""

    wanted: Wanted


class Remove(msgspec.Struct, frozen=True):
    """Take it off the disk."""

    sha256: str


class Fetch(msgspec.Struct, frozen=True):
    """Bring it onto the disk."""

    wanted: Wanted


class Refuse(msgspec.Struct, frozen=True):
    """It cannot be taken."""

    wanted: Wanted
    reason: str


Step = Unload | Load | Remove | Fetch | Refuse


def steps(now: Situation) -> list[Step]:
    """What is to be done, in this order; empty when all is as it should be, or as near as it can be.

    The first step may change what is to be done then, so plan again after each.
    """
    aims = {one.model: one for one in now.wanted or () if one.name not in now.own}
    if now.wanted is None:
        return _load(now, aims)
    beside = [one for one in now.beside if one.name not in now.own]
    made: list[Step] = [*_unload(now), *_load(now, aims)]
    made += [
        Load(one)
        for one in beside
        if one.sha256 in now.stored and one not in now.blocked and not is_served(now, one)
    ]
    needed = {one.sha256 for one in (*aims.values(), *beside)} | set(now.loaded.values())
    kept = needed | _to_go_back_to(now, aims)
    made += [Remove(sha256) for sha256 in sorted(now.stored) if sha256 not in kept]
    for aim in (*aims.values(), *beside):
        if aim.sha256 not in now.stored and aim not in now.blocked:
            made += _fetch(now, needed, kept, aim)
    return made


def is_served(now: Situation, aim: Wanted) -> bool:
    """Whether that package, or one of the agent's own with its name and version, is loaded."""
    return aim.name in now.own or now.loaded.get(aim.name) == aim.sha256


def _unload(now: Situation) -> list[Step]:
    by_model = {one.model: one for one in now.wanted or ()}
    beside = {one.name for one in now.beside}
    return [
        Unload(key)
        for key in sorted(now.loaded)
        if (aim := by_model.get(key.name)) is None
        or (key != aim.name and key not in beside and is_served(now, aim))
    ]


def _load(now: Situation, aims: Mapping[str, Wanted]) -> list[Step]:
    served = {key.name for key in now.loaded}
    made: list[Step] = []
    # Who never heard from the hub serves what it served last.
    names = aims if now.wanted is not None else {one.wanted.model: None for one in now.stored.values()}
    for model in names:
        aim = aims.get(model)
        if aim is not None and is_served(now, aim):
            continue
        if aim is not None and aim.sha256 in now.stored and aim not in now.blocked:
            made.append(Load(aim))
        elif model not in served and (last := _latest(now, model, but=aim)) is not None:
            made.append(Load(last.wanted))
    return made


def _latest(now: Situation, model: str, *, but: Wanted | None) -> Stored | None:
    """The package on disk that was the last of its model to be served, and may be again."""
    served = [
        one
        for one in now.stored.values()
        if one.wanted.model == model
        and one.served_at
        and one.wanted not in now.blocked
        and one.wanted.name not in now.own
        and (but is None or one.wanted.sha256 != but.sha256)
    ]
    return max(served, key=lambda one: (one.served_at, one.wanted.sha256), default=None)


def _to_go_back_to(now: Situation, aims: Mapping[str, Wanted]) -> set[str]:
    """What stays on disk though nothing wants it."""
    kept: set[str] = set()
    loaded = set(now.loaded.values())
    for model in {one.wanted.model for one in now.stored.values()}:
        aim = aims.get(model)
        # What is loaded beside the one that is wanted is itself the one to go back to.
        if not any(
            now.stored[sha256].wanted.model == model and (aim is None or sha256 != aim.sha256)
            for sha256 in loaded & now.stored.keys()
        ):
            last = _latest(now, model, but=aim)
            kept |= {last.wanted.sha256} if last else set()
    return kept


def _fetch(now: Situation, needed: Collection[str], kept: Iterable[str], aim: Wanted) -> list[Step]:
    """Fetch it, and make room before, by what is `kept` and not `needed`."""
    if aim.size > now.max_package_bytes:
        said = f"it has {aim.size:,} bytes, and registry.max_package_bytes is {now.max_package_bytes:,}"
        return [Refuse(aim, said)]
    here = [now.stored[sha256] for sha256 in kept if sha256 in now.stored]
    room = now.max_bytes - sum(one.wanted.size for one in here) - aim.size
    made: list[Step] = []
    for one in sorted(here, key=lambda one: (one.served_at, one.wanted.sha256)):
        if room < 0 and one.wanted.sha256 not in needed:
            made.append(Remove(one.wanted.sha256))
            room += one.wanted.size
    if room < 0:
        said = f"there is no room for {aim.size:,} bytes beside what is served: registry.max_bytes is "
        return [Refuse(aim, f"{said}{now.max_bytes:,}")]
    return [*made, Fetch(aim)]
