"""Models over REST: pushed, listed, removed."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from cloud_hub.api import context, model_view, problems, uploads
from cloud_hub.store import models, pool, targets
from shared import packages, topics

router = APIRouter(prefix="/v1/models", tags=["models"])

Name = Annotated[str, Path(description="The model", examples=["surface-defects"])]
VersionName = Annotated[str, Path(description="The version", examples=["1.2.0"])]

_TEXT: Final = {"type": "string"}
_ARCHIVE: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The package's archive, as `backhaul models pack` makes it",
        "content": {packages.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {"name": name, "in": "header", "required": False, "schema": _TEXT, "description": description}
        for name, description in (
            ("Backhaul-Key", "The public key that the package is signed with, `ed25519:BASE64`"),
            ("Backhaul-Signature", "The signature, `ed25519:BASE64`"),
            (
                "Content-Digest",
                "`sha-256=:BASE64:` of the body (RFC 9530): one that was damaged on its way is refused, and "
                "one that cannot be taken is refused before it is read",
            ),
        )
    ],
}
_HAD: Final[problems.Responses] = {
    200: {"model": model_view.WholeVersion, "description": "The hub had it already"}
}


@router.get("", summary="List models", responses=problems.documented())
async def list_models(hub: context.Dependency) -> model_view.Models:
    """Every model with its versions and targets."""
    async with hub.connection() as connection:
        versions = await models.every(connection)
        aims = await targets.every(connection)
    return model_view.Models.model_construct(models=model_view.by_name(versions, aims))


@router.get("/{name}", summary="One model", responses=problems.documented(problems.NOT_FOUND))
async def get(hub: context.Dependency, name: Name) -> model_view.Model:
    """Its versions, the one pushed last first, and its targets."""
    async with hub.connection() as connection:
        versions = await models.every(connection, name)
        aims = await targets.every(connection, name)
    if not versions:
        raise unknown(name)
    (found,) = model_view.by_name(versions, aims)
    return found


@router.get(
    "/{name}/versions/{version}",
    summary="One version of a model",
    responses=problems.documented(problems.NOT_FOUND),
)
async def get_version(hub: context.Dependency, name: Name, version: VersionName) -> model_view.WholeVersion:
    """With its manifest. The archive is at `/v1/blobs/{sha256}`."""
    async with pool.statement(hub.database) as connection:
        found = await models.find(connection, name, version)
    if found is None:
        raise unknown(name, version)
    return model_view.whole_version(found)


@router.put(
    "/{name}/versions/{version}",
    status_code=201,
    summary="Push a version of a model",
    responses=_HAD
    | problems.documented(
        problems.BAD_PACKAGE,
        problems.VERSION_TAKEN,
        problems.INVALID,
        problems.TOO_LARGE,
        problems.TOO_SLOW,
        problems.UNSUPPORTED,
        problems.BUSY,
    ),
    openapi_extra=_ARCHIVE,
)
async def push(
    request: Request, response: Response, hub: context.Dependency, name: Name, version: VersionName
) -> model_view.WholeVersion:
    """Take a package. A version never changes: other content under a version that is there is refused, and
    the same content again is 200, with the signature that comes with it in place of the one before.

    The archive is checked, its manifest read and compared with the address, a signature verified. A package
    that is not signed is taken, and shown as such.
    """
    _check(name, version)
    claims = uploads.claims(name, version, request)
    if claims.sha256 is not None:
        async with pool.statement(hub.database) as connection:
            present = await models.find(connection, name, version)
        if present is not None and present.sha256 != claims.sha256:
            raise uploads.refused(present)
    with hub.pushes.enter():
        is_new = await uploads.receive(hub, request, claims)
    response.status_code = 201 if is_new else 200
    response.headers["location"] = request.url.path
    return await get_version(hub, name, version)


@router.delete(
    "/{name}/versions/{version}",
    summary="Remove a version of a model",
    responses=problems.documented(problems.NOT_FOUND, problems.IN_USE),
)
async def delete(hub: context.Dependency, name: Name, version: VersionName) -> model_view.WholeVersion:
    """Forget a version that no target names and no rollout brings; answered with what it was.

    Agents that have it lose nothing. Its content goes within the hour, unless another version has the same.
    """
    found = await get_version(hub, name, version)
    async with hub.connection() as connection:
        aims = [aim for aim in await targets.every(connection, name) if aim.version == version]
    try:
        async with hub.connection() as connection:
            if not await models.remove(connection, name, version):
                raise unknown(name, version)
    except models.Targeted:
        if not aims:
            raise problems.Problem(
                problems.IN_USE,
                f"{name}@{version} is being rolled out; /v1/rollouts?model={name} shows it. Roll it back, or "
                "wait for its end and serve another version, then remove it",
                where="version",
            ) from None
        where = ", ".join(aim.selector or "all agents" for aim in aims)
        raise problems.Problem(
            problems.IN_USE,
            f"{name}@{version} is to be served by {where}; withdraw it there, or serve another "
            "version, then remove it",
            where="version",
        ) from None
    return found


def unknown(name: str, version: str | None = None) -> problems.Problem:
    """What is said of a model or a version that the hub does not have."""
    if version is None:
        detail = f"no model {name} was pushed to this hub; those that were are listed at /v1/models"
        return problems.Problem(problems.NOT_FOUND, detail, where="name")
    detail = f"no {name}@{version} was pushed to this hub; what was is listed at /v1/models"
    return problems.Problem(problems.NOT_FOUND, detail, where="version")


def _check(name: str, version: str) -> None:
    for where, value in (("name", name), ("version", version)):
        try:
            topics.check_name(value, where)
        except topics.BadTopic as wrong:
            raise problems.Problem(problems.INVALID, str(wrong), where=where) from None
