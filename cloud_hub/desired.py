"""What an agent is to serve, by its labels and the targets: a pure decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloud_hub.store import targets
from shared import selectors


def models(found: Iterable[targets.Target], labels: Mapping[str, str]) -> list[targets.Target]:
    """Of each model the one target that counts for an agent with `labels`; by model.

    Of the targets whose selector fits, that which asks for most labels; among equals the newest.
    """
    chosen: dict[str, tuple[tuple[int, float, str], targets.Target]] = {}
    for target in found:
        wanted = selectors.parse(target.selector)
        if selectors.matches(wanted, labels):
            # The selector decides between two of one instant, so that the choice is always the same.
            rank = (len(wanted), target.changed_at.timestamp(), target.selector)
            if target.model not in chosen or rank > chosen[target.model][0]:
                chosen[target.model] = (rank, target)
    return [target for _, (_, target) in sorted(chosen.items())]
