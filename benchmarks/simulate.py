"""A fleet of thousands of agents under the hub's own policy, on virtual time: waits, shares, preemptions.

`benchmarks.simulation.run` says what is modelled and what is not, `benchmarks.simulation.world` what the
world is. In a smaller one the same arrivals go first-come, first-served to any able agent, to compare with.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import figures
from benchmarks.simulation import hub, run, world
from cloud_hub.scheduler import snapshot

RULES: Final = snapshot.Rules()
QUICK: Final = world.Sizes(agents=100, sites=10, tasks=10_000)
SMALL: Final = world.Sizes(agents=1_000, sites=100, tasks=100_000)
"""The world of the comparison, unless the other is smaller."""

WHAT: Final = {
    world.URGENT_PRIORITY: "urgent",
    world.BACKLOG_PRIORITY: "backlog",
    world.NIGHT_PRIORITY: "night",
}


def simulate(sizes: world.Sizes) -> run.Books:
    """The world under the hub's policy."""
    place = world.World(sizes)
    return run.Simulation(place, hub.Backhaul(place.agents, world.WEIGHTS, RULES)).run()


def compare(sizes: world.Sizes) -> run.Books:
    """The same world, first come, first served."""
    place = world.World(sizes)
    return run.Simulation(place, hub.FirstCome(place.agents, sizes.seed)).run()


def measure(sizes: world.Sizes) -> dict[str, Any]:
    """Simulate, print the tables, return the figures."""
    small = sizes if sizes.tasks <= SMALL.tasks else replace(SMALL, seed=sizes.seed)
    large = simulate(sizes)
    ours = large if small == sizes else simulate(small)
    plain = compare(small)
    _report(sizes, large)
    _report_comparison(small, ours, plain)
    seen = [priority for priority in range(10) if large.waits[priority]]
    urgent = world.URGENT_PRIORITY
    return {
        "agents": sizes.agents,
        "tasks": sizes.tasks,
        "seconds": figures.significant(large.took_s),
        "share_error": figures.significant(large.share_error(world.WEIGHTS)),
        "wait_p50_s": {str(p): figures.significant(large.wait_s(p, 0.5)) for p in seen},
        "wait_p99_s": {str(p): figures.significant(large.wait_s(p, 0.99)) for p in seen},
        "preemptions": large.preemptions,
        "utilisation": figures.significant(large.utilisation),
        "overflow": figures.significant(large.handed_over / large.device_jobs),
        "policy_us_per_task": figures.significant(1e6 * large.hub_s / large.placed),
        "plain_share_error": figures.significant(plain.share_error(world.WEIGHTS)),
        "plain_wait_p99_s": figures.significant(plain.wait_s(urgent, 0.99)),
        "ratio_to_plain_wait_p99": figures.significant(
            plain.wait_s(urgent, 0.99) / ours.wait_s(urgent, 0.99)
        ),
    }


def _report(sizes: world.Sizes, books: run.Books) -> None:
    speed = books.simulated_s / books.took_s
    figures.show(
        f"{sizes.tasks:,} tasks, {sizes.agents:,} agents, {sizes.sites:,} sites: what they waited",
        ("declared priority", "tasks", "p50 s", "p99 s", "longest s"),
        (
            (f"{priority} {WHAT.get(priority, 'devices')}", f"{len(waits):,}", *_waits(books, priority))
            for priority, waits in reversed(list(enumerate(books.waits)))
            if waits
        ),
        (
            f"{books.simulated_s:,.0f} s simulated in {books.took_s:.1f} s ({speed:.0f} times as fast), "
            f"arrivals {'of a real service' if world.TRACE.exists() else 'generated'}.",
            f"{books.backlogged_s:,.0f} s with a backlog: shares by weight within "
            f"{books.share_error(world.WEIGHTS):.2%}, executors busy {books.utilisation:.1%}.",
            f"{books.handed_over:,} of {books.device_jobs:,} devices' jobs overflowed; "
            f"{books.preemptions:,} preemptions.",
            f"{books.placed:,} placements in {books.passes:,} passes: "
            f"{1e6 * books.hub_s / books.placed:.0f} us each, reports of the agents included.",
        ),
    )


def _report_comparison(sizes: world.Sizes, ours: run.Books, plain: run.Books) -> None:
    urgent = world.URGENT_PRIORITY
    figures.show(
        f"{sizes.tasks:,} tasks, {sizes.agents:,} agents: against first come, first served",
        ("policy", "urgent p50 s", "urgent p99 s", "share error", "busy", "overflow"),
        (
            (
                name,
                f"{books.wait_s(urgent, 0.5):.2f}",
                f"{books.wait_s(urgent, 0.99):.2f}",
                f"{books.share_error(world.WEIGHTS):.2%}",
                f"{books.utilisation:.1%}",
                f"{books.handed_over / books.device_jobs:.1%}",
            )
            for name, books in (("Backhaul", ours), ("first come", plain))
        ),
        (),
    )


def _waits(books: run.Books, priority: int) -> list[str]:
    return [f"{books.wait_s(priority, share):,.2f}" for share in (0.5, 0.99, 1.0)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description="a simulated fleet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, under 'simulate'")
    parser.add_argument("--quick", action="store_true", help="a tiny world: a look whether it works")
    parser.add_argument("--agents", type=int, metavar="N")
    parser.add_argument("--sites", type=int, metavar="N", help="the cloud pool is one of them")
    parser.add_argument("--tasks", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N", help="another world of the same sizes")
    given = vars(parser.parse_args(argv))
    path, quick = given.pop("json"), given.pop("quick")
    chosen = {name: value for name, value in given.items() if value is not None}
    sizes = replace(QUICK if quick else world.Sizes(), **chosen)
    if sizes.sites < 2 or sizes.agents < sizes.sites or sizes.tasks < 1_000:
        parser.error("a world has 2 sites or more, an agent at each, and 1,000 tasks or more")
    gc.disable()  # nothing here is in cycles, and to look for some among all tasks takes a third of the time
    try:
        figures.save(path, "simulate", measure(sizes))
    finally:
        gc.enable()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
