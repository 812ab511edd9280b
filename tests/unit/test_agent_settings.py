"""The agent's settings: what a file may say, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import settings
from shared import settings as files

LEAST = 'site = "plant-a"\nname = "edge-1"\nstate = "state"\nmodels = "models"\n[broker]\n'


def read(folder: Path, more: str) -> settings.Settings:
    file = folder / "agent.toml"
    file.write_text(LEAST + more)
    return settings.load(file)


def test_labels_are_what_the_file_says(tmp_path: Path) -> None:
    """`[labels]` is a table of texts, and empty where nothing is said."""
    assert read(tmp_path, "").labels == {}
    labels = read(tmp_path, '[labels]\ngpu = "a2000"\n"example.com/line" = "press-7"\n').labels
    assert labels == {"gpu": "a2000", "example.com/line": "press-7"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('site = "plant-b"', r"site.*already"),
        ('agent = "edge-2"', r"agent.*already"),
        ('"two words" = "x"', "two words"),
        ('gpu = "a,b"', "a,b"),
        ('gpu = ""', "gpu"),
        ("gpu = 4", r"Expected `str`"),
    ],
)
def test_a_label_that_no_selector_could_ask_for(tmp_path: Path, line: str, says: str) -> None:
    """A label that is taken, or that could not stand in a selector, is an error that names it."""
    with pytest.raises(files.BadSettings, match=says):
        read(tmp_path, f"[labels]\n{line}\n")


KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
HUB = '[registry]\nurl = "https://hub.example"\n'


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (HUB, "trusted_keys: at least one is needed"),
        (HUB + 'trusted_keys = ["ed25519:AAAA"]', "no public key"),
        ('[registry]\nurl = "hub.example"\nunsigned = true', "no address of a hub"),
        (HUB + "unsigned = true\npoll_s = 0", "poll_s = 0"),
    ],
)
def test_a_registry_that_cannot_be_used(tmp_path: Path, more: str, says: str) -> None:
    """Whom to trust must be said before anything is fetched, and what is wrong is named."""
    with pytest.raises(files.BadSettings, match=says):
        read(tmp_path, f"[uplink_broker]\n{more}\n")


def test_a_registry_that_can_be_used(tmp_path: Path) -> None:
    """One key that is trusted is enough, and so is to ask for none; the hub must hear the agent."""
    assert read(tmp_path, f'[uplink_broker]\n{HUB}trusted_keys = ["{KEY}"]').registry.trusted_keys == (KEY,)
    assert read(tmp_path, f"[uplink_broker]\n{HUB}unsigned = true").registry.unsigned
    with pytest.raises(files.BadSettings, match="name \\[uplink_broker\\]"):
        read(tmp_path, f"{HUB}unsigned = true")
