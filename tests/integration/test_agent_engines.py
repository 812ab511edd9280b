"""A whole agent on what it takes for a machine with a GPU: TensorRT builds while devices are answered."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks import first_answer
from demo import servers
from tests import gpu, models
from tests.integration import agents, played

RESULTS = f"backhaul/v1/{agents.SITE}/results/+"


def status(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


async def test_devices_are_answered_while_an_engine_is_built(
    tmp_path: Path, broker: servers.Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is ready at once and says what is being built; TensorRT takes over, also after a restart."""
    monkeypatch.setenv("PYTHONPATH", str(gpu.site(tmp_path / "site", "gated")))
    one = agents.agent(tmp_path, broker, engine={"provider": "tensorrt"})
    gate = tmp_path / "state" / "engines" / "gate"
    gate.parent.mkdir(parents=True)
    os.mkfifo(gate)
    picture = models.png(250)
    async with agents.Replies(broker, RESULTS) as replies:

        async def label() -> str:
            await agents.run("mosquitto_pub", broker, "-t", agents.JOBS, "-q", "1", "-s", stdin=picture)
            (item,) = (await replies.next())["items"]
            return str(item["label"])

        async with agents.running(one):
            assert await label() == "bright"
            await played.until(lambda: status(one.port)["engines"][0]["state"] == "building")
            told = status(one.port)
            assert told["models"][0]["provider"] == told["telemetry"]["models"][0]["provider"] == "cpu"
            assert told["models"][0]["wanted"] == "tensorrt"
            gate.write_bytes(b"go")
            await played.until(lambda: status(one.port)["models"][0]["provider"] == "tensorrt")
            assert await label() == "bright"
            gate.unlink()
            await one.restart()
            assert await label() == "bright"
            told = status(one.port)
            assert told["models"][0]["provider"] == "tensorrt"
            assert [engine["state"] for engine in told["engines"]] == ["built"]


@pytest.mark.usefixtures("broker")
def test_a_start_without_an_engine_is_measured_until_tensorrt_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer comes before the engine does, by what serves meanwhile."""
    monkeypatch.setenv("PYTHONPATH", str(gpu.site(tmp_path / "site", "build")))
    written = tmp_path / "figures.json"
    assert first_answer.main(["--gpu", "--quick", "--json", str(written)]) == 0
    for one in json.loads(written.read_text())["first_answer"].values():
        assert 0 < one["without_engine_s"] < one["built_s"]
        assert one["first_s"] > 0
