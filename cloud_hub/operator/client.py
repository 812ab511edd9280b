"""A client of the hub's REST API, for the command line and for scripts.

    with client.Client("http://127.0.0.1:8080") as hub:
        task = hub.submit(Path("part.png").read_bytes(), "image/png", model="surface-defects")
        print(hub.wait(task["task_id"], 30)["state"])

Answers are the JSON that the API gives. What got no answer is asked again, for a while: reading is
harmless, and a submission carries an idempotency key, so that no task is ever made twice.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import httpx

ARROW: Final = "application/vnd.apache.arrow.stream"
TIMEOUT_S: Final = 30.0
MAX_WAIT_S: Final = 60.0
"""What the API waits at most in one request."""
PATIENCE_S: Final = 30.0
"""How long a submission that gets no answer is sent again."""
READ_PATIENCE_S: Final = 2.0
"""The same for all else, behind which a person waits."""
SETTINGS: Final = (
    "weight",
    "max_running",
    "max_queued",
    "max_per_second",
    "default_priority",
    "when_full",
)
"""What can be set of a queue."""
RETRIED: Final = frozenset({429, 503})

Query = Mapping[str, str | int | float | None]
Answer = dict[str, Any]


class Failed(Exception):
    """The hub did not do what it was asked; the message says why."""

    is_passing = False
    """Whether the same may be answered later."""


class Unreachable(Failed):
    """The hub gave no answer."""

    is_passing = True


class Refused(Failed):
    """The hub answered with a problem (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any], status: int) -> None:
        detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
        super().__init__(detail)
        self.status = status
        self.problem = problem
        self.is_passing = status in RETRIED


class Client:
    """Talks to one hub. Safe to use from several threads at once."""

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, patience_s: float = PATIENCE_S, connections: int = 16
    ) -> None:
        import httpx  # 100 ms: only a command that talks to a hub pays for it

        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        try:
            self._http = httpx.Client(
                base_url=self.url, timeout=timeout_s, limits=httpx.Limits(max_connections=connections)
            )
        except httpx.InvalidURL as error:
            raise Failed(f"{url!r} is no address of a hub: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(
        self,
        body: bytes,
        content_type: str | None = None,
        *,
        model: str | None = None,
        key: str | None = None,
        **metadata: str | int | None,
    ) -> Answer:
        """Submit one task; returned once it is stored for good. `metadata`: priority, queue, deadline_ms…

        `key`: the idempotency key; without one a new one is made, so that a repetition is harmless.
        """
        headers = {"idempotency-key": key or str(uuid.uuid4())}
        if content_type:
            headers["content-type"] = content_type
        query = {"model": model, **metadata}
        return self._json(
            "POST", "/v1/tasks", query=query, content=body, headers=headers, patience_s=self._patience_s
        )

    def task(self, task_id: str, wait_s: float = 0.0) -> Answer:
        """A task and its attempts; with `wait_s` (at most MAX_WAIT_S) as soon as it has ended."""
        return self._json("GET", f"/v1/tasks/{task_id}", query={"wait": wait_s or None})

    def wait(self, task_id: str, timeout_s: float) -> Answer:
        """The task once it has ended, or as it is after `timeout_s`."""
        until = time.monotonic() + timeout_s
        while True:
            left = until - time.monotonic()
            task = self.task(task_id, wait_s=max(0.0, min(left, MAX_WAIT_S)))
            if task["finished_at"] or left <= 0:
                return task

    def tasks(self, *, limit: int = 100, **wanted: str | None) -> Iterator[Answer]:
        """Tasks, newest first, up to `limit`, over as many pages as that takes."""
        return self._pages("/v1/tasks", "tasks", limit, wanted)

    def results(self, *, limit: int = 100, **wanted: str | None) -> Iterator[Answer]:
        """Result rows, newest task first, up to `limit`."""
        return self._pages("/v1/results", "results", limit, wanted)

    def results_of(self, task_id: str) -> list[Answer]:
        """The result rows of one task."""
        found: list[Answer] = self._json("GET", f"/v1/tasks/{task_id}/results")["results"]
        return found

    def export(self, path: Path, **wanted: str | None) -> int:
        """Write all result rows to `path` as an Arrow IPC stream; returns its bytes. Memory stays small.

        The file appears when it is complete.
        """
        import httpx

        draft = path.with_name(path.name + ".part")
        try:
            with (
                self._http.stream(
                    "GET", "/v1/results", params=_said(wanted), headers={"accept": ARROW}
                ) as answer,
                draft.open("wb") as file,
            ):
                if answer.is_error:
                    answer.read()
                    raise _refused(answer)
                for chunk in answer.iter_bytes():
                    file.write(chunk)
            draft.replace(path)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        finally:
            draft.unlink(missing_ok=True)
        return path.stat().st_size

    def cancel(self, task_id: str) -> Answer:
        return self._json("POST", f"/v1/tasks/{task_id}/cancel")

    def retry(self, task_id: str) -> Answer:
        """Put a dead letter back into the queue."""
        return self._json("POST", f"/v1/tasks/{task_id}/retry")

    def retry_many(self, *, limit: int, **wanted: str | None) -> Answer:
        """Put all dead letters of a filter back into their queues: reason, model, queue, site."""
        return self._json("POST", "/v1/tasks/retry", query={**wanted, "limit": limit})

    def explain(self, task_id: str) -> Answer:
        """Why a task waits, and why it went where it went."""
        return self._json("GET", f"/v1/tasks/{task_id}/explain")

    def queues(self) -> Answer:
        return self._json("GET", "/v1/queues")

    def queue(self, name: str) -> Answer:
        return self._json("GET", f"/v1/queues/{_quoted(name)}")

    def set_queue(self, name: str, **settings: Any) -> Answer:
        """Change some settings of a queue, and leave the others as they are."""
        found = self.queue(name)
        wanted = {key: found[key] for key in SETTINGS} | settings
        return self._json(
            "PUT",
            f"/v1/queues/{_quoted(name)}",
            **_body(wanted),
        )

    def remove_queue(self, name: str) -> Answer:
        """Forget a queue's settings; its tasks stay."""
        return self._json("DELETE", f"/v1/queues/{_quoted(name)}")

    def fleet(self) -> Answer:
        return self._json("GET", "/v1/fleet")

    def summary(self) -> Answer:
        return self._json("GET", "/v1/summary")

    def drain(self, site: str, name: str, within_s: float | None = None) -> Answer:
        """Give an agent no more of the hub's tasks; what it runs after `within_s` is queued again."""
        return self._json("POST", f"/v1/agents/{site}/{name}/drain", query={"within_s": within_s})

    def resume(self, site: str, name: str) -> Answer:
        """Give an agent the hub's tasks again."""
        return self._json("POST", f"/v1/agents/{site}/{name}/resume")

    def models(self) -> Answer:
        return self._json("GET", "/v1/models")

    def model(self, name: str) -> Answer:
        return self._json("GET", f"/v1/models/{_quoted(name)}")

    def version(self, name: str, version: str) -> Answer:
        """One version of a model, with its manifest."""
        return self._json("GET", _version(name, version))

    def push(
        self, name: str, version: str, archive: Path | bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Push a package; `headers`: its digest and signature."""
        return self._json(
            "PUT",
            _version(name, version),
            content=archive,
            headers=headers,
            patience_s=self._patience_s,
        )

    def remove_version(self, name: str, version: str) -> Answer:
        """Forget a version; returns what it was."""
        return self._json("DELETE", _version(name, version))

    def serve(self, name: str, version: str, selector: str = "") -> Answer:
        """Have the agents that a selector fits serve a version."""
        return self._json(
            "PUT",
            f"/v1/targets/{_quoted(name)}",
            **_body({"version": version, "selector": selector}),
        )

    def withdraw(self, name: str, selector: str = "") -> Answer:
        """Withdraw a target; returns those that are left of the model."""
        return self._json("DELETE", f"/v1/targets/{_quoted(name)}", query={"selector": selector})

    def rollouts(self, *, model: str | None = None, state: str | None = None) -> Answer:
        return self._json("GET", "/v1/rollouts", query={"model": model, "state": state})

    def rollout(self, rollout_id: str) -> Answer:
        """A rollout with its progress, the agents that it concerns, and its history."""
        return self._json("GET", f"/v1/rollouts/{_quoted(rollout_id)}")

    def start_rollout(self, **wanted: Any) -> Answer:
        """Begin a rollout: model, version, selector, stages, gates, min_results, soak_s, patience_s, on_fail.

        Asked once: a repetition would find the model under way.
        """
        return self._json("POST", "/v1/rollouts", patience_s=0.0, **_body(wanted))

    def change_rollout(
        self, rollout_id: str, change: str, reason: str = "", stage: int | None = None
    ) -> Answer:
        """Promote, pause, resume or rollback; with `stage` only if the rollout is in that one.

        So a promotion that got no answer and is asked for again never goes on by two stages.
        """
        path = f"/v1/rollouts/{_quoted(rollout_id)}/{change}"
        return self._json("POST", path, **_body({"reason": reason, "stage": stage}))

    def _pages(self, path: str, what: str, limit: int, wanted: Query) -> Iterator[Answer]:
        cursor: str | None = None
        while limit > 0:
            page = self._json(
                "GET",
                path,
                query={**wanted, "limit": min(limit, 1000), **({"cursor": cursor} if cursor else {})},
            )
            yield from page[what]
            limit -= len(page[what])
            cursor = page["next"]
            if cursor is None:
                return

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        content: bytes | Path | None = None,
        headers: Mapping[str, str] | None = None,
        patience_s: float = READ_PATIENCE_S,
    ) -> Answer:
        """One answer, asked for again while there is none or the hub says to come back.

        A file is sent without being read as a whole.
        """
        import httpx

        wait = float(query.get("wait") or 0.0) if query else 0.0
        until = time.monotonic() + patience_s
        for attempt in range(1000):
            pause = random.uniform(0, min(5.0, 0.1 * 2**attempt))  # full jitter
            try:
                with contextlib.ExitStack() as stack:
                    answer = self._http.request(
                        method,
                        path,
                        params=_said(query or {}),
                        content=(
                            stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
                        ),
                        headers=headers,
                        timeout=self._timeout_s + wait,
                    )
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failed: Failed = self._unreachable(error)
            else:
                if not answer.is_error:
                    found: Answer = answer.json()
                    return found
                failed = _refused(answer)
                if answer.status_code not in RETRIED:
                    raise failed
                pause += float(answer.headers.get("retry-after", 0))
            if time.monotonic() + pause > until:
                raise failed
            time.sleep(pause)
        raise AssertionError("a thousand attempts take longer than anybody's patience")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"no answer from the hub at {self.url} ({str(error) or type(error).__name__}). "
            "Is it running, and is that its address? Say it with --hub or BACKHAUL_HUB."
        )


def _quoted(name: str) -> str:
    """A name as one level of an address, whatever is in it."""
    return urllib.parse.quote(name, safe="")


def _version(name: str, version: str) -> str:
    return f"/v1/models/{_quoted(name)}/versions/{_quoted(version)}"


def _body(wanted: Answer) -> Answer:
    """What is wanted as the body of a request, with its header."""
    return {"content": json.dumps(wanted).encode(), "headers": {"content-type": "application/json"}}


def _said(query: Query) -> dict[str, str | int | float]:
    return {name: value for name, value in query.items() if value is not None}


def _refused(answer: httpx.Response) -> Refused:
    """The problem in an answer; something else than a hub may answer otherwise."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {
            "title": f"{answer.url} answered {answer.status_code} {answer.reason_phrase}; is that a hub?"
        }
    return Refused(problem, answer.status_code)
