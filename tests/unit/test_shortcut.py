"""The way past the framework answers as the framework does."""

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute

from cloud_hub.api import problems, shortcut

router = APIRouter()


@router.post("/echo")
async def echo(request: Request) -> Response:
    match (await request.body()).decode():
        case "refused":
            raise problems.Problem(problems.REJECTED, "not this one", where="body", retry_after_s=3)
        case "broken":
            raise ZeroDivisionError
        case said:
            return Response(said, 202)


def _app(*, short: bool) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    if short:
        routes = [route for route in router.routes if isinstance(route, APIRoute)]
        app.add_middleware(shortcut.Shortcut, routes=routes)
    return app


async def _ask(app: FastAPI, method: str, path: str, body: str) -> tuple[int, str, dict[str, str]]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
        answer = await client.request(method, path, content=body)
        return answer.status_code, answer.text, dict(answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/echo", "hello"),
        ("POST", "/echo", "refused"),
        ("POST", "/echo", "broken"),
        ("GET", "/echo", ""),
        ("POST", "/echo/", "hello"),
        ("POST", "/elsewhere", "hello"),
    ],
)
async def test_both_ways_answer_alike(method: str, path: str, body: str) -> None:
    """Status, body and headers are the same, for errors that were foreseen and for those that were not."""
    assert await _ask(_app(short=True), method, path, body) == await _ask(
        _app(short=False), method, path, body
    )


async def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to such a route does not go through the app behind."""
    app = _app(short=True)
    monkeypatch.setattr(app.router, "middleware_stack", None)
    assert (await _ask(app, "POST", "/echo", "hello"))[:2] == (202, "hello")
    assert (await _ask(app, "POST", "/elsewhere", "hello"))[0] == 500
