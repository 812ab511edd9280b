"""The local port: health, metrics and status. Threads of the standard library's server serve it.

Pages are made in the agent's loop, so that they see it as it is, and so that a loop that hangs is an
agent that does not answer its liveness probe.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.server
import threading
from collections.abc import Callable, Mapping
from typing import Final

Page = Callable[[], tuple[int, str, bytes]]
"""Answers with status, content type and body; called in the loop, so it only reads."""

TIMEOUT_S: Final = 5.0


class Server:
    """Serves pages until closed. To be made in the loop in which they are to be called."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self._server = http.server.ThreadingHTTPServer(
            (host, port), _handler(pages, asyncio.get_running_loop())
        )
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(
    pages: Mapping[str, Page], loop: asyncio.AbstractEventLoop
) -> type[http.server.BaseHTTPRequestHandler]:
    async def make(page: Page) -> tuple[int, str, bytes]:
        return page()

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version = "backhaul-agent"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                known = ", ".join(sorted(pages))
                status, content_type, body = 404, "text/plain", f"not found; there is {known}\n".encode()
            else:
                made = asyncio.run_coroutine_threadsafe(make(page), loop)
                try:
                    status, content_type, body = made.result(TIMEOUT_S)
                except (concurrent.futures.CancelledError, TimeoutError):
                    status, content_type, body = 503, "text/plain", b"the agent's loop does not answer\n"
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: probes come every few seconds."""

    return Handler
