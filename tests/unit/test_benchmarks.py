"""The benchmarks run, and write what they measured; what they measure is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    edge,
    engine,
    figures,
    footprint,
    learning,
    loading,
    peers,
    scheduler,
    simulate,
    transport,
)
from benchmarks.queues import peer
from benchmarks.serving import way
from tests import models


def figures_in(path: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text())[name]
    return told


@pytest.mark.usefixtures("broker", "postgres")
def test_transport_brings_every_row_to_the_table(tmp_path: Path) -> None:
    """Each way brings its rows, Backhaul's are compared with what was made, and nothing is missing."""
    written = tmp_path / "figures.json"
    assert transport.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "transport")
    assert told["records_missing"] == 0
    for name in ("rows_per_s", "ratio_to_copy", "ratio_to_naive", "ratio_to_json_500", "bytes_per_row"):
        assert told[name] > 0, name


@pytest.mark.usefixtures("broker")
def test_edge_answers_every_way(tmp_path: Path) -> None:
    """Agent and scripts answer the same driver."""
    written = tmp_path / "figures.json"
    assert edge.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "edge")
    for name in ("jobs_per_s", "p50_ms", "p99_ms", "ratio_to_bare", "ratio_to_plain"):
        assert told[name] > 0, name
    assert told["p50_ms"] <= told["p99_ms"]


@pytest.mark.usefixtures("broker")
def test_footprint_weighs_an_agent_that_loads_nothing_of_the_cloud(tmp_path: Path) -> None:
    """It fails if an agent loads a forbidden module; a flood is taken in whole."""
    written = tmp_path / "figures.json"
    assert footprint.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "footprint")
    assert 0 < told["idle_rss_mb"] <= told["flood_rss_mb"]
    assert told["flood_waiting"] > 0


def test_simulate_ends_every_task_in_a_small_world(tmp_path: Path) -> None:
    """All that arrives runs; urgent tasks wait less than by a plain policy, and shares follow weights."""
    written = tmp_path / "figures.json"
    assert simulate.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "simulate")
    assert told["tasks"] == 10_000
    assert 0 <= told["share_error"] < 0.25 < told["plain_share_error"]
    assert told["wait_p50_s"]["8"] <= told["wait_p50_s"]["3"]
    assert told["ratio_to_plain_wait_p99"] > 1
    assert 0.5 < told["utilisation"] <= 1
    assert 0 <= told["overflow"] <= 1


@pytest.mark.usefixtures("postgres", "valkey")
def test_peers_do_every_task_in_each_way_that_is_installed(tmp_path: Path) -> None:
    """Each way's store says that all tasks are done; a queue that is not installed is left out."""
    written = tmp_path / "figures.json"
    assert peers.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "peers")
    assert {kind.name for kind in peer.KINDS if kind.installed} <= told.keys()
    assert told["plain_sql"] > 0
    assert all(rate > 0 for rate in told.values())


@pytest.mark.usefixtures("broker", "postgres", "redis_url")
def test_scheduler_brings_every_task_in_and_out(tmp_path: Path) -> None:
    """Each task that is submitted is answered, each lease is seen at the broker, at either depth."""
    written = tmp_path / "figures.json"
    assert scheduler.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "scheduler")
    for name in (
        "submit_single_per_s",
        "submit_batched_per_s",
        "submit_batched_ratio_to_copy",
        "decisions_per_s",
    ):
        assert told[name] > 0, name
    assert 0 < told["lease_p50_ms"] <= told["lease_p99_ms"]
    assert told["depth_penalty"] > 0


def test_engine_is_compared_for_every_model(tmp_path: Path) -> None:
    """Each model goes through the engine and a bare loop; over HTTP each server that is installed answers."""
    written = tmp_path / "figures.json"
    assert engine.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "engine")
    over_http = told.pop("peers")
    assert {"surface-defects", "dense", "tabular"} <= told.keys()
    for name, one in told.items():
        assert one["items_per_s"] > 0, name
        assert one["ratio_to_bare"] > 0, name
        assert 0 < one["p50_ms"] <= one["p99_ms"], name
    assert "surface-defects" in over_http
    for name, ways in over_http.items():
        assert ways.keys() == {"backhaul"} | {kind.name for kind in way.KINDS if kind.installed}, name
        for one in ways.values():
            assert one["items_per_s"] > 0, name
            assert one["ratio"] > 0, name
            assert 0 < one["p50_ms"] <= one["p99_ms"], name


@pytest.mark.usefixtures("broker", "postgres", "valkey")
def test_loading_leaves_no_memory_behind_and_loses_no_job(tmp_path: Path) -> None:
    """A model comes and goes, and memory stays flat; versions are swapped, and each job is answered once."""
    written = tmp_path / "figures.json"
    assert loading.main(["--quick", "--json", str(written)]) == 0
    told = figures_in(written, "loading")
    assert told["memory"]["surface-defects"]["grown_mb"] <= loading.BOUND_MB
    swapped = told["swaps"]
    assert (swapped["missing"], swapped["twice"], swapped["failed"]) == (0, 0, 0)
    assert swapped["jobs"] > 0
    assert swapped["versions"] == 1 + swapped["swaps"]


@pytest.mark.usefixtures("broker")
def test_learning_is_compared_by_pairs(tmp_path: Path) -> None:
    """An agent that learns and one whose manifest forbids it answer the same driver."""
    written = tmp_path / "figures.json"
    assert learning.main(["--quick", "--json", str(written)]) == 0
    for one in figures_in(written, "learning").values():
        assert all(pair > 0 for pair in one["pairs"])
        assert one["cpu_ratio"] > 0


def test_the_table_of_a_gpu_needs_no_more_than_the_engine(tmp_path: Path) -> None:
    """It runs, here on the CPU, where neither onnx nor the agent's other libraries are installed."""
    graphs = [models.write_classifier(tmp_path / "a"), models.write_scorer(tmp_path / "b")]
    blocked = ["cryptography", "httpx", "onnx", "paho", "prometheus_client", "psutil", "pyarrow", "rich"]
    without = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))"
    run = "import runpy; runpy.run_module('benchmarks.engine', run_name='__main__', alter_sys=True)"
    given = ["--gpu", "--quick", "--providers", "cpu", "--threads", "2"]
    given += [word for graph in graphs for word in ("--graph", str(graph / "model.onnx"))]
    ended = subprocess.run(
        [sys.executable, "-c", f"{without}; {run}", " ".join(blocked), *given],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()[2:]]
    assert [line[1:4] for line in lines] == [["float32", "cpu", size] for size in ("2", "4")] * 2


def test_a_file_of_figures_keeps_what_other_benchmarks_wrote(tmp_path: Path) -> None:
    """One file collects all benchmarks; one that runs again replaces its own figures."""
    written = tmp_path / "figures.json"
    figures.save(written, "one", {"a": 1})
    figures.save(written, "two", {"b": 2})
    figures.save(written, "one", {"a": 3})
    assert json.loads(written.read_text()) == {"one": {"a": 3}, "two": {"b": 2}}


@pytest.mark.parametrize(("value", "printed"), [(0.51234, "0.512"), (1234.5, "1230.0"), (0.0, "0.0")])
def test_figures_have_three_significant_digits(value: float, printed: str) -> None:
    """More would be noise."""
    assert str(figures.significant(value)) == printed
