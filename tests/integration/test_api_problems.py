"""Errors over REST: one form for all of them, which says what is wrong, where, and what to do."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from cloud_hub.api import context, problems
from demo import servers
from shared import tasks
from tests.integration import api_server
from tests.integration.api_server import Served, arrow, png

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the hub's

UNKNOWN = tasks.format_id(tasks.new_id())
SUBMIT = "/v1/tasks?model=defects"
PNG = base64.b64encode(png()).decode()
TEXT = {"content-type": "text/csv"}
KEY = {"idempotency-key": "b"}
GZIP = {"content-encoding": "gzip"}
PNG_TYPE = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(database_of_module: str) -> AsyncIterator[Served]:
    """One for all tests here: what is refused leaves nothing behind."""
    async with api_server.serving(database_of_module) as served:
        yield served


def said(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


CASES: dict[str, tuple[str, str, bytes, dict[str, str], str, str | None]] = {
    # what: (method, address, body, headers, the kind of the problem, where it is)
    "an address that is not there": ("GET", "/v1/tsks", b"", {}, "not-found", None),
    "a method that is not taken": ("DELETE", "/v1/tasks", b"", {}, "method-not-allowed", None),
    "a task that is not there": ("GET", f"/v1/tasks/{UNKNOWN}", b"", {}, "not-found", "task_id"),
    "cancel no task": ("POST", f"/v1/tasks/{UNKNOWN}/cancel", b"", {}, "not-found", "task_id"),
    "retry no task": ("POST", f"/v1/tasks/{UNKNOWN}/retry", b"", {}, "not-found", "task_id"),
    "an id that is none": ("GET", "/v1/tasks/part-1", b"", {}, "invalid", "task_id"),
    "an agent that is not there": ("GET", "/v1/agents/lyon/press-z", b"", {}, "not-found", "name"),
    "explain no task": ("GET", f"/v1/tasks/{UNKNOWN}/explain", b"", {}, "not-found", "task_id"),
    "explain an id that is none": ("GET", "/v1/tasks/part-1/explain", b"", {}, "invalid", "task_id"),
    "retry all there is": ("POST", "/v1/tasks/retry", b"", {}, "invalid", "reason"),
    "retry for no reason": ("POST", "/v1/tasks/retry?reason=whim", b"", {}, "invalid", "reason"),
    "settings of no JSON": ("PUT", "/v1/queues/archive", b"{", JSON, "invalid", "body"),
    "a selector that is none": ("POST", f"{SUBMIT}&selector=gpu", png(), {}, "rejected", "selector"),
    "drain no agent": ("POST", "/v1/agents/lyon/z/drain", b"", {}, "not-found", "name"),
    "no kind of problem": ("GET", "/problems/sorrow", b"", {}, "not-found", "name"),
    "a wait too long": ("GET", f"/v1/tasks/{UNKNOWN}?wait=61", b"", {}, "invalid", "wait"),
    "a state that is none": ("GET", "/v1/tasks?state=DONE", b"", {}, "invalid", "state"),
    "a filter that is none": ("GET", "/v1/tasks?modell=defects", b"", {}, "invalid", "modell"),
    "a page too long": ("GET", "/v1/results?limit=100000", b"", {}, "invalid", "limit"),
    "an instant of no zone": ("GET", "/v1/results?since=2026-01-01T00:00:00", b"", {}, "invalid", "since"),
    "a cursor that is none": ("GET", "/v1/results?cursor=xyz", b"", {}, "invalid", "cursor"),
    "a cursor of tasks that is none": ("GET", "/v1/tasks?cursor=xyz", b"", {}, "invalid", "cursor"),
    "metadata that is none": ("POST", f"{SUBMIT}&prority=9", png(), {}, "invalid", "prority"),
    "no model": ("POST", "/v1/tasks", png(), {}, "rejected", "model"),
    "two models": ("POST", SUBMIT, said(model="ocr", inputs=[]), JSON, "rejected", "model"),
    "a model that is no name": ("POST", "/v1/tasks?model=a/b", png(), {}, "rejected", "model"),
    "a priority of no number": ("POST", f"{SUBMIT}&priority=high", png(), {}, "rejected", "priority"),
    "a priority beyond 9": ("POST", f"{SUBMIT}&priority=12", png(), {}, "rejected", "priority"),
    "no body": ("POST", SUBMIT, b"", {}, "rejected", None),
    "no image": ("POST", SUBMIT, b"GIF89a", PNG_TYPE, "rejected", "content_type"),
    "a type that is not taken": ("POST", SUBMIT, b"x,y", TEXT, "rejected", "content_type"),
    "broken JSON": ("POST", SUBMIT, b'{"image": ', JSON, "rejected", None),
    "JSON that is not UTF-8": ("POST", SUBMIT, b'{"model": "\xed\xa0\x80"}', JSON, "rejected", None),
    "bottomless JSON": ("POST", SUBMIT, b'{"queue": ' + b"[" * 50_000, JSON, "rejected", None),
    "JSON of a wrong type": ("POST", "/v1/tasks", said(model=7), JSON, "rejected", "model"),
    "no base64": ("POST", SUBMIT, said(image="***"), JSON, "rejected", "image"),
    "a zero byte": ("POST", SUBMIT, said(image=PNG, traceparent="a\0b"), JSON, "rejected", "traceparent"),
    "two keys": ("POST", f"{SUBMIT}&idempotency_key=a", png(), KEY, "rejected", "idempotency_key"),
    "an encoded body": ("POST", SUBMIT, png(), GZIP, "unsupported-content", "content-encoding"),
    "a batch that is none": ("POST", "/v1/tasks/batch", b"[]", JSON, "rejected", "tasks"),
    "an empty batch": ("POST", "/v1/tasks/batch", said(tasks=[]), JSON, "rejected", "tasks"),
    "a batch of no kind": ("POST", "/v1/tasks/batch", png(), {}, "unsupported-content", "content-type"),
    "a batch of broken Arrow": ("POST", "/v1/tasks/batch", b"\xff\xff\xff\xffxx", ARROW, "rejected", "body"),
    "no payloads": ("POST", "/v1/tasks/batch", arrow({"model": ["m"]}), ARROW, "rejected", "payload"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_every_error_is_a_problem(
    hub: Served, case: tuple[str, str, bytes, dict[str, str], str, str | None]
) -> None:
    """Whatever is wrong with a request, the answer is a whole problem+json and names the place."""
    method, address, body, headers, kind, where = case
    answer = await hub.client.request(method, address, content=body, headers=headers)
    problem = check(answer)
    assert problem["type"] == f"/problems/{kind}", problem
    assert [fault["where"] for fault in problem.get("errors", [])] == ([where] if where else [])
    assert await hub.rows("SELECT count(*) FROM tasks") == [(0,)]


def check(answer: httpx.Response) -> dict[str, Any]:
    """The problem in an answer, which must have all that RFC 9457 and this API promise."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    parsed = problems.ProblemDetails.model_validate(problem)
    kind = problems.KINDS[parsed.type.removeprefix("/problems/")]
    assert (parsed.status, parsed.title) == (kind.status, kind.title)
    assert answer.status_code == kind.status
    assert parsed.instance == answer.request.url.path
    assert len(parsed.detail) > 10
    return problem


async def test_a_problem_is_explained_at_its_type(hub: Served) -> None:
    """The `type` of every kind of problem is an address of the hub, at which its meaning stands."""
    for kind in problems.KINDS.values():
        answer = await hub.client.get(kind.type)
        assert answer.json() == {
            "type": kind.type,
            "title": kind.title,
            "status": kind.status,
            "meaning": kind.meaning,
        }


async def test_an_error_of_the_hub_is_a_problem_too(hub: Served) -> None:
    """A fault in the hub itself is answered 500 in the same form, without its insides."""

    async def broken() -> None:
        raise RuntimeError("a secret")

    hub.app.get("/broken", include_in_schema=False)(broken)
    problem = check(await hub.client.get("/broken"))
    assert problem["status"] == 500
    assert "secret" not in json.dumps(problem)


async def submitted_in_the_end(hub: api_server.Served) -> str:
    """Submit as a client does that takes 503 at its word; the id of the task."""
    async with asyncio.timeout(20):
        while (answer := await hub.client.post(SUBMIT, content=png())).status_code == 503:  # noqa: ASYNC110 - the answer says when to ask again
            await asyncio.sleep(int(answer.headers["retry-after"]))
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


async def test_without_postgresql_the_answer_is_503_and_later_all_is_well(tmp_path: Path) -> None:
    """While PostgreSQL is away requests are answered 503 with a time to come back; after it, as before."""
    async with servers.Postgres(tmp_path / "postgres") as postgres:
        settings = context.Settings(database_wait_s=1)
        async with api_server.serving(postgres.dsn, settings) as hub:
            first = await hub.submit()
            assert (await hub.client.get("/healthz/ready")).status_code == 200
            await postgres.stop()
            for method, address in (("POST", SUBMIT), ("GET", "/v1/tasks"), ("GET", "/v1/fleet")):
                answer = await hub.client.request(method, address, content=png() if method == "POST" else b"")
                problem = check(answer)
                assert problem["type"] == "/problems/unavailable"
                assert int(answer.headers["retry-after"]) >= 1
            ready = check(await hub.client.get("/healthz/ready"))
            assert ready["errors"] == [{"where": "postgresql", "detail": "cannot be reached"}]
            assert (await hub.client.get("/healthz/live")).status_code == 200
            assert 'backhaul_up{part="postgresql"} 0.0' in (await hub.client.get("/metrics")).text
            await postgres.start()
            again = await submitted_in_the_end(hub)
            listed = (await hub.client.get("/v1/tasks")).json()["tasks"]
            assert [task["task_id"] for task in listed] == [again, first]


# OpenAPI


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def schema(hub: Served) -> dict[str, Any]:
    description: dict[str, Any] = (await hub.client.get("/openapi.json")).json()
    return description


async def test_every_operation_is_described(schema: dict[str, Any]) -> None:
    """Each operation says what it does, what each parameter means, and with which errors it may answer."""
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 18
    for name, operation in operations:
        assert operation["summary"], name
        assert operation["description"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{name}: {parameter['name']}"
        for status, answer in operation["responses"].items():
            assert answer["description"], name
            if status >= "400":
                assert list(answer["content"]) == ["application/problem+json"], f"{name}: {status}"
        if name in ("POST /v1/tasks", "POST /v1/tasks/batch"):
            assert set(operation["responses"]) == {"202", "413", "415", "422", "429", "503"}
            assert operation["requestBody"]["content"]


async def test_every_field_is_described(schema: dict[str, Any]) -> None:
    """Each field of each answer has a sentence on what it means."""
    components = schema["components"]["schemas"]
    assert {"Task", "Agent", "Result", "ProblemDetails", "Submitted"} <= set(components)
    for name, component in components.items():
        for field, described in component.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"
