"""Models as the API shows them: versions, targets, and what an agent is to serve."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from cloud_hub import desired
from cloud_hub.store import models, targets
from shared.rollouts import stages

SHA256 = "9b74c9897bac770ffc029102a200c5de11d2d9a9d1a7c2f0e5c9a8b7d6e5f4a3"
ROLLOUT = "01990d8a-6f2b-7c41-9d3e-5b8f0a1c2d3e"
KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


class Version(BaseModel):
    """A version of a model. Its content never changes."""

    name: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="The version", examples=["1.2.0"])
    sha256: str = Field(
        description="SHA-256 of the package's archive, by which /v1/blobs has it", examples=[SHA256]
    )
    size: int = Field(description="Bytes of the archive", examples=[850_432])
    key: str | None = Field(
        description="The public key that it is signed with; null: it is not signed. The hub has verified the "
        "signature, and trusts every key: whom to trust is for the agents to know",
        examples=[KEY],
    )
    signature: str | None = Field(
        description="The signature, Ed25519 over `backhaul-model-1`, name, version and SHA-256, each with a "
        "newline behind it; null: it is not signed",
        examples=["ed25519:5VZDAMNgrHKQhuLMgG6CioSHfx645dl02HPgZSJJAVVfuIIVkK…"],
    )
    pushed_at: datetime = Field(description="When it was pushed first")


class WholeVersion(Version):
    """A version of a model, with its manifest."""

    manifest: str = Field(description="Its `model.toml`", examples=['name = "surface-defects"\n…'])


class Target(BaseModel):
    """Which version of a model the agents with some labels are to serve."""

    model: str = Field(description="The model", examples=["surface-defects"])
    selector: str = Field(
        description="The agents: those that have all these labels; empty: all agents", examples=["site=lyon"]
    )
    version: str = Field(description="The version that they are to serve", examples=["1.2.0"])
    changed_at: datetime = Field(description="Since when")


class Aim(BaseModel):
    """A target that is to be set."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="The version to serve", examples=["1.2.0"])
    selector: str = Field(
        "", description="By which agents: `key=value`, several with commas between", examples=["site=lyon"]
    )


class Targets(BaseModel):
    """Targets."""

    targets: list[Target] = Field(description="By model and selector")


class Model(BaseModel):
    """A model: its versions, and where they are to be served."""

    name: str = Field(description="The model", examples=["surface-defects"])
    versions: list[Version] = Field(description="The one pushed last first")
    targets: list[Target] = Field(description="Who is to serve which of them, by selector")


class Models(BaseModel):
    """All models."""

    models: list[Model] = Field(description="By name")


class Wanted(BaseModel):
    """A version of a model that an agent is to serve, and all it needs to fetch and verify it."""

    model: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="The version", examples=["1.2.0"])
    sha256: str = Field(description="Its archive is at /v1/blobs/{sha256}", examples=[SHA256])
    size: int = Field(description="Bytes of the archive", examples=[850_432])
    key: str | None = Field(description="As of the version", examples=[KEY])
    signature: str | None = Field(description="As of the version", examples=["ed25519:5VZDAMNgrHKQhuLM…"])
    selector: str = Field(description="Of the target that says so", examples=["site=lyon"])


class Package(BaseModel):
    """A version of a model, and all that an agent needs to fetch and verify it."""

    model: str = Field(description="The model", examples=["surface-defects"])
    version: str = Field(description="The version", examples=["1.3.0"])
    sha256: str = Field(description="Its archive is at /v1/blobs/{sha256}", examples=[SHA256])
    size: int = Field(description="Bytes of the archive", examples=[850_432])
    key: str | None = Field(description="As of the version", examples=[KEY])
    signature: str | None = Field(description="As of the version", examples=["ed25519:5VZDAMNgrHKQhuLM…"])


class Trial(BaseModel):
    """A rollout that the agent takes part in. `models` names the version that it is to serve by default."""

    rollout: str = Field(description="Its id; jobs are dealt by it", examples=[ROLLOUT])
    model: str = Field(description="The model", examples=["surface-defects"])
    mode: stages.Mode = Field(
        description="The new version answers all jobs (`serve`) or some (`split`), or runs them only to be "
        "compared (`shadow`)"
    )
    traffic: float = Field(description="Percent of the jobs", examples=[10.0])
    tags: list[tuple[str, str]] = Field(
        description="User properties of jobs that go to the new version whatever their share",
        examples=[[("group", "beta")]],
    )
    new: Package = Field(description="The version that is rolled out")
    old: Package | None = Field(description="The one that the agent's target says; null: none does")
    gates: list[str] = Field(
        description="What the agent judges by itself, hub or no hub", examples=[["errors<=1%"]]
    )
    min_results: int = Field(description="Results that a stage needs", examples=[100])


class Desired(BaseModel):
    """What an agent is to serve of the hub's models. Models that it has from elsewhere are its own affair."""

    models: list[Wanted] = Field(description="By name, one version of each")
    trials: list[Trial] = Field(description="The rollouts that it takes part in, by model")


def version(found: models.Version) -> Version:
    key, signature = found.signed or (None, None)
    return Version.model_construct(
        name=found.name,
        version=found.version,
        sha256=found.sha256,
        size=found.size,
        key=key,
        signature=signature,
        pushed_at=found.pushed_at,
    )


def whole_version(found: models.Version) -> WholeVersion:
    return WholeVersion.model_construct(**dict(version(found)), manifest=found.manifest or "")


def target(found: targets.Target) -> Target:
    return Target.model_construct(
        model=found.model, selector=found.selector, version=found.version, changed_at=found.changed_at
    )


def wanted(found: targets.Target) -> Wanted:
    key, signature = found.signed or (None, None)
    return Wanted.model_construct(
        model=found.model,
        version=found.version,
        sha256=found.sha256,
        size=found.size,
        key=key,
        signature=signature,
        selector=found.selector,
    )


def wanted_new(trial: desired.Trial, new: models.Version) -> Wanted:
    """The version that is rolled out, as one to serve."""
    return Wanted.model_construct(**dict(_package(new.name, new)), selector=trial.rollout.plan.selector)


def trial(found: desired.Trial, new: models.Version) -> Trial:
    return Trial.model_construct(
        rollout=found.rollout.name,
        model=new.name,
        mode=found.exposure.mode,
        traffic=found.exposure.traffic,
        tags=list(found.exposure.tags),
        new=_package(new.name, new),
        old=found.old and _package(found.old.model, found.old),
        gates=[str(gate) for gate in found.rollout.plan.gates],
        min_results=found.rollout.plan.min_results,
    )


def _package(model: str, found: models.Version | targets.Target) -> Package:
    key, signature = found.signed or (None, None)
    return Package.model_construct(
        model=model,
        version=found.version,
        sha256=found.sha256,
        size=found.size,
        key=key,
        signature=signature,
    )


def by_name(versions: Iterable[models.Version], aims: Iterable[targets.Target]) -> list[Model]:
    """The models that these versions are of, with those of the targets that are of them."""
    found: dict[str, Model] = {}
    for one in versions:
        empty = Model.model_construct(name=one.name, versions=[], targets=[])
        found.setdefault(one.name, empty).versions.append(version(one))
    for aim in aims:
        if aim.model in found:  # or it was pushed after the versions were read
            found[aim.model].targets.append(target(aim))
    return [found[name] for name in sorted(found)]
