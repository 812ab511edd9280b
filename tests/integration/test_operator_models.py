"""`backhaul models`, run as a command against a real hub."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import packages, signatures
from tests import models
from tests.integration import api_server
from tests.integration.api_server import Served, join, telemetry
from tests.integration.test_operator import backhaul


@pytest.fixture
async def hub(database: str) -> AsyncIterator[Served]:
    async with api_server.serving(database) as served:
        yield served


async def test_a_model_goes_from_a_folder_to_an_agent(hub: Served, tmp_path: Path) -> None:
    """push, serve, and the agent is told; withdraw, rm, and all is as before."""
    folder = models.write_classifier(tmp_path / "m")
    pushed = await backhaul(hub, "models", "push", str(folder))
    assert (pushed.status, "brightness@1.0.0 pushed" in pushed.out) == (0, True), pushed.err
    assert "not signed" in pushed.out
    again = await backhaul(hub, "models", "push", str(folder))
    assert "was there already" in again.out
    served = await backhaul(hub, "models", "serve", "brightness@1.0.0", "--where", "site=lyon")
    assert served.out == "Agents with site=lyon are to serve brightness@1.0.0.\n"
    await join(hub.pool, telemetry=telemetry())
    (wanted,) = (await hub.client.get("/v1/agents/lyon/press-a/models")).json()["models"]
    assert (wanted["model"], wanted["version"]) == ("brightness", "1.0.0")
    table = (await backhaul(hub, "models")).out
    for seen in ("brightness", "1.0.0", "not signed", "site=lyon", wanted["sha256"][:12]):
        assert seen in table, table
    shown = (await backhaul(hub, "models", "show", "brightness@1.0.0")).out
    assert 'kind = "image"' in shown
    assert wanted["sha256"] in shown
    in_use = await backhaul(hub, "models", "rm", "brightness@1.0.0")
    assert (in_use.status, "withdraw it there" in in_use.err) == (1, True)
    gone = await backhaul(hub, "models", "withdraw", "brightness", "--where", "site=lyon")
    assert "Targets that are left: none" in gone.out
    assert (await backhaul(hub, "models", "rm", "brightness@1.0.0")).status == 0
    assert "no models" in (await backhaul(hub, "models", "list")).out


async def test_a_package_is_signed_with_a_key_of_ones_own(hub: Served, tmp_path: Path) -> None:
    """keygen's public key is the one that the hub shows, and the signature holds."""
    folder = models.write_classifier(tmp_path / "m")
    made = await backhaul(None, "models", "keygen", str(tmp_path / "release.pem"))
    key = made.out.splitlines()[-1]
    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
    twice = await backhaul(None, "models", "keygen", str(tmp_path / "release.pem"))
    assert (twice.status, "never written over" in twice.err) == (1, True)
    words = ("models", "push", str(folder), "--key", str(tmp_path / "release.pem"), "--json")
    (told,) = (await backhaul(hub, *words)).lines
    assert (told["key"], told["repeated"]) == (key, False)
    signatures.verify(signatures.Signed(key, told["signature"]), "brightness", "1.0.0", told["sha256"])
    assert key[:20] in (await backhaul(hub, "models")).out


async def test_an_archive_is_pushed_as_its_folder_is(hub: Served, tmp_path: Path) -> None:
    """pack makes the file that push would send, wherever it is carried before it is pushed."""
    folder = models.write_classifier(tmp_path / "m")
    packed = await backhaul(None, "models", "pack", str(folder), str(tmp_path / "carried.tar"), "--json")
    (told,) = packed.lines
    sink = io.BytesIO()
    assert packages.pack(folder, sink).sha256 == told["sha256"]
    (pushed,) = (await backhaul(hub, "models", "push", str(tmp_path / "carried.tar"), "--json")).lines
    assert pushed["sha256"] == told["sha256"]
    (again,) = (await backhaul(hub, "models", "push", str(folder), "--json")).lines
    assert again == pushed | {"repeated": True}
    assert sorted(os.listdir(tmp_path)) == ["carried.tar", "m"]


async def test_what_cannot_be_done_is_told(hub: Served, tmp_path: Path) -> None:
    """Other content under the version, no package, no key, no version, no such model: a sentence each."""
    folder = models.write_classifier(tmp_path / "m")
    await backhaul(hub, "models", "push", str(folder))
    (folder / "words.txt").write_text("more")
    (tmp_path / "no.pem").write_text("no key")
    for words, said in (
        (("push", str(folder)), "push it under the new one"),
        (("push", str(tmp_path / "nothing")), "No such file"),
        (("push", str(folder / "model.toml")), "no archive"),
        (("push", str(tmp_path)), "model.toml is missing"),
        (("push", str(folder), "--key", str(tmp_path / "no.pem")), "no private key"),
        (("push", str(folder), "--key", str(tmp_path / "none.pem")), "No such file"),
        (("serve", "brightness"), "NAME@VERSION"),
        (("serve", "brightness@9"), "no brightness@9 was pushed"),
        (("serve", "brightness@1.0.0", "--where", "lyon"), "not KEY=VALUE"),
        (("withdraw", "brightness"), "no target for all agents"),
        (("show", "other"), "no model other was pushed"),
    ):
        ran = await backhaul(hub, "models", *words)
        assert ran.status == 1, words
        assert said in ran.err, ran.err
        assert "Traceback" not in ran.err


async def test_check_runs_the_model_as_an_agent_would(tmp_path: Path) -> None:
    """Without a hub: what really runs it and how fast; the status says whether the package can be used."""
    folder = models.write_classifier(tmp_path / "m", extra="[batching]\nmax_batch = 2")
    (folder / "sample.png").write_bytes(models.png(250))
    ran = await backhaul(None, "models", "check", str(folder))
    assert ran.status == 0, ran.err
    for seen in ("brightness@1.0.0", "runs on    cpu", "batch 2 ", "sample     bright"):
        assert seen in ran.out, ran.out
    (told,) = (await backhaul(None, "models", "check", str(folder), "--json")).lines
    assert [speed["batch"] for speed in told["speeds"]] == [1, 2]
    (folder / "model.onnx").write_bytes(b"no graph")
    bad = await backhaul(None, "models", "check", str(folder))
    assert (bad.status, "opens on none" in bad.err) == (1, True)
