"""The way past the framework, for routes whose endpoints read their requests themselves.

What FastAPI does between a connection and an endpoint (routes tried in turn, dependencies, several layers of
middleware) costs a small request several times what the endpoint does. The routes stay FastAPI's own: in its
description of the API, and for whoever comes by another way than the plain address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cloud_hub.api import problems

Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """Middleware that calls the endpoints of some routes itself; the others go on to the app."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        """`routes`: without parameters in their paths; their endpoints take the request and nothing else."""
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (
            self._routes.get((scope["method"], scope["path"]))
            if scope["type"] == "http" and not scope.get("root_path")
            else None
        )
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # by which the request is counted
        request = Request(scope, receive, send)
        endpoint: Endpoint = route.endpoint
        try:
            response = await endpoint(request)
        except Exception as error:
            answer = await problems.answer(request, error)
            if answer is None:
                raise
            response = answer
        await response(scope, receive, send)
