"""The manifests hold together: they parse, name each other rightly, and their settings load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_hub import settings as hub_settings
from edge_agent import settings as agent_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SIDES = ("edge", "cloud")


def documents(side: str) -> Iterator[dict[str, Any]]:
    """All resources of a kustomization."""
    folder = DEPLOY / side
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text())


@pytest.mark.parametrize("side", SIDES)
def test_workloads_carry_the_recommended_labels_and_select_themselves(side: str) -> None:
    """Every workload has Kubernetes' recommended labels, and its selector matches its own pods."""
    workloads = [one for one in documents(side) if one["kind"] in ("StatefulSet", "Deployment")]
    assert workloads
    for one in workloads:
        labels = one["metadata"]["labels"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/component", "app.kubernetes.io/part-of"} <= set(
            labels
        )
        selector = one["spec"]["selector"]["matchLabels"].items()
        assert selector <= one["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("side", SIDES)
def test_every_volume_that_is_mounted_exists(side: str) -> None:
    """A container mounts only volumes of its pod, and config maps that the kustomization generates."""
    generated = {
        one["name"]
        for one in yaml.safe_load((DEPLOY / side / "kustomization.yaml").read_text())["configMapGenerator"]
    }
    for one in documents(side):
        if one["kind"] not in ("StatefulSet", "Deployment"):
            continue
        pod = one["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v} <= generated


def test_the_settings_in_them_load() -> None:
    """The settings files that the manifests carry are taken by the programs that get them."""
    assert agent_settings.load(DEPLOY / "edge" / "agent.toml").site == "plant-a"
    assert agent_settings.load(DEPLOY / "cloud" / "pool.toml").broker is None
    assert hub_settings.load(DEPLOY / "cloud" / "hub.toml").http.port == 8080
