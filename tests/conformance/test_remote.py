"""A server of the Open Inference Protocol that is away, slow, or none: what its models do then."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.servers import ports
from edge_agent import engine, loading, models, outcomes, remote, runtime, settings
from edge_agent.oip import messages, tensors
from tests.conformance import packages, stranger

SOON_MS = 400
"""Time-out of models whose server is going to be too slow."""

ONE = {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 3), np.float32)}


@pytest.fixture
def server() -> Iterator[stranger.Server]:
    with stranger.Server({"two": packages.TWO.strange()}) as one:
        yield one


def package(folder: Path, url: str, more: str = "") -> models.Model:
    table = f'[runtime]\nkind = "oip"\nurl = "{url}"\n{more}\n'
    return models.load(packages.TWO.write(folder / "two", table))


def impatient(folder: Path, url: str) -> models.Model:
    return package(folder, url, f"timeout_ms = {SOON_MS}")


def ask(opened: runtime.Runtime) -> None:
    total, _ = opened.run(ONE)
    assert total.tolist() == [[2, 2, 2]]


class Within:
    """Fails where the block takes longer than a model's time-out, and somewhat."""

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self._began < SOON_MS / 1000 + 0.6


def test_connections_are_kept(server: stranger.Server, tmp_path: Path) -> None:
    """Loading and a hundred runs take one connection; eight threads take eight at most."""
    opened = remote.RemoteRuntime(package(tmp_path, server.url))
    for _ in range(100):
        ask(opened)
    assert server.connections == 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(opened), range(100)))
    assert server.connections <= 8
    opened.close()


def test_a_connection_that_broke_while_idle_is_replaced(tmp_path: Path) -> None:
    """A server closes what was idle for long; nobody notices."""
    with stranger.Server({"two": packages.TWO.strange()}, open_s=0.05) as server:
        opened = remote.RemoteRuntime(package(tmp_path, server.url))
        for _ in range(3):
            ask(opened)
            time.sleep(0.15)
        ask(opened)
        assert server.connections > 1


def test_a_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """While it is away a run waits, as long as its time-out allows, and is answered by the new one."""
    served = {"two": packages.TWO.strange()}
    with stranger.Server(served) as server:
        opened = remote.RemoteRuntime(package(tmp_path, server.url))
        ask(opened)
    again = stranger.Server(served, port=server.port)
    back = threading.Timer(0.3, again.__enter__)
    back.start()
    ask(opened)
    back.join()
    again.__exit__(None, None, None)


def test_a_server_that_is_away_is_unavailable_in_time(tmp_path: Path) -> None:
    """Neither loading nor a run takes longer than the time-out, and the error names the server."""
    with stranger.Server({"two": packages.TWO.strange()}) as server:
        opened = remote.RemoteRuntime(impatient(tmp_path, server.url))
    with Within(), pytest.raises(runtime.Unavailable, match=server.url):
        opened.run(ONE)
    with Within(), pytest.raises(runtime.Unavailable, match=server.url):
        remote.RemoteRuntime(impatient(tmp_path, server.url))


def _trickle(handler: Any) -> bool:
    """Answer a byte at a time, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b"{")
        handler.wfile.flush()
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("slow", [stranger.silent, _trickle])
def test_a_slow_server_holds_up_nobody(
    server: stranger.Server, tmp_path: Path, slow: Callable[[Any], bool]
) -> None:
    """One that says nothing, or a byte now and then, is unavailable when the time is up."""
    opened = remote.RemoteRuntime(impatient(tmp_path, server.url))
    server.misbehave = slow
    with Within(), pytest.raises(runtime.Unavailable, match="in time"):
        opened.run(ONE)
    server.misbehave = None
    ask(opened)


def test_a_port_where_nobody_listens_to_what_is_said(tmp_path: Path) -> None:
    """A server that takes connections and never reads is unavailable when the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with Within(), pytest.raises(runtime.Unavailable, match=url):
            remote.RemoteRuntime(impatient(tmp_path, url))


def test_a_busy_server_is_asked_again(server: stranger.Server, tmp_path: Path) -> None:
    """503 says nothing against the request: it is repeated, and only then given up."""
    opened = remote.RemoteRuntime(impatient(tmp_path, server.url))
    turns = iter([True, False])

    def busy(handler: Any) -> bool:
        if next(turns, True):
            handler.say(503, {"error": "no room"})
            return True
        return False

    server.misbehave = busy
    ask(opened)
    with Within(), pytest.raises(runtime.Unavailable, match="503: no room"):
        opened.run(ONE)


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda handler: handler.say(400, {"error": "bad input"}), "answered 400: bad input"),
        (lambda handler: handler.say(500, "?"), "answered 500"),
        (lambda handler: handler.say(200, {"outputs": []}), "no output sum, product"),
        (lambda handler: handler.say(200, {"outputs": [{}]}), "no response of the protocol"),
        (lambda handler: handler.say(200, "?"), "no response of the protocol"),
        (lambda handler: handler.wfile.write(b"hello\r\n\r\n"), "BadStatusLine"),
        (
            lambda handler: handler.say(
                200,
                {
                    "outputs": [
                        {"name": name, "datatype": "FP32", "shape": [2, 3], "data": [0] * 6}
                        for name in ("sum", "product")
                    ]
                },
            ),
            "shape .* for 1 items",
        ),
    ],
)
def test_an_answer_that_is_none_is_told(
    server: stranger.Server, tmp_path: Path, say: Callable[[Any], None], words: str
) -> None:
    """With what the server said, and at once: the same request would fail again."""
    opened = remote.RemoteRuntime(package(tmp_path, server.url))
    before = len(server.requests)

    def answer(handler: Any) -> bool:
        say(handler)
        handler.close_connection = True
        return True

    server.misbehave = answer
    with pytest.raises(runtime.RunFailed, match=words) as caught:
        opened.run(ONE)
    assert not isinstance(caught.value, runtime.Unavailable)
    assert len(server.requests) == before + 1
    server.misbehave = None
    ask(opened)


def test_a_version_and_another_name_stand_in_the_address(server: stranger.Server, tmp_path: Path) -> None:
    """`model` and `version` of the manifest say which model of the server it is."""
    server.models["theirs"] = server.models.pop("two")
    model = package(tmp_path, f"{server.url}/", 'model = "theirs"\nversion = "3"')
    ask(remote.RemoteRuntime(model))
    assert server.requests[-1] == "POST /v2/models/theirs/versions/3/infer"


def test_what_is_no_such_server_is_told(tmp_path: Path) -> None:
    """One that is ready and describes nothing is a wrong address, not one to wait for."""

    class Odd(stranger.Server):
        pass

    with Odd({"two": packages.TWO.strange()}) as server:
        server.models["two"].inputs = {"a": ("FP32", "?")}  # type: ignore[dict-item]
        with pytest.raises(runtime.BadGraph, match="not as the protocol has it"):
            remote.RemoteRuntime(package(tmp_path, server.url))


def test_a_model_that_is_not_ready_is_waited_for(server: stranger.Server, tmp_path: Path) -> None:
    """A server that still loads the model is asked until it has it."""
    server.models["two"].ready = False
    threading.Timer(0.3, lambda: setattr(server.models["two"], "ready", True)).start()
    ask(remote.RemoteRuntime(package(tmp_path, server.url)))


def test_a_batch_is_not_taken_apart_while_the_server_is_away(tmp_path: Path) -> None:
    """All its items fail for one reason, in the time of one run, and may be tried again."""
    with stranger.Server({"two": packages.TWO.strange()}) as server:
        model = impatient(tmp_path, server.url)
        machine = engine.Engine(models.Catalogue())
        machine.load(model)
    given = [tensors.Tensor(name, np.zeros((8, 3), np.float32)) for name in "ab"]
    payload = messages.pack(messages.write({}, {"inputs": given}, binary=True))
    with Within():
        (made,) = machine.run(model, [engine.Work(messages.CONTENT_TYPE, payload, 8)])
    assert len(made) == 8
    for one in made:
        assert isinstance(one, outcomes.ItemFailed)
        assert one.kind is outcomes.Failure.INFERENCE_FAILED
        assert server.url in one.reason
    machine.close()


async def test_an_agent_loads_the_model_when_its_server_comes(tmp_path: Path) -> None:
    """An agent starts without the server, and serves the model as soon as that is there."""
    port = ports.free()
    packages.FOUR.write(tmp_path / "models" / "four")
    impatient(tmp_path / "models", f"http://127.0.0.1:{port}")
    policy = settings.Settings(site="s", name="n", state=str(tmp_path), models=str(tmp_path / "models"))
    machine, _, away = loading.load(policy, models.Catalogue())
    assert (machine.names(), [model.name for model in away]) == (["four"], ["two"])
    told: list[bool] = []
    with stranger.Server({"two": packages.TWO.strange()}, port=port):
        await loading.load_later(machine, away, "auto", lambda: told.append(machine.has("two")), again_s=0.01)
    assert told == [True]
    machine.close()


def test_json_that_cannot_carry_a_number_is_told(server: stranger.Server, tmp_path: Path) -> None:
    """NaN does not go into JSON: the error says what to set."""
    opened = remote.RemoteRuntime(package(tmp_path, server.url, "binary = false"))
    with pytest.raises(runtime.RunFailed, match=r"'a'.*not finite.*binary = true"):
        opened.run({"a": np.full((1, 3), np.nan, np.float32), "b": np.ones((1, 3), np.float32)})


def test_python_of_a_package_needs_leave(tmp_path: Path) -> None:
    """Code of a package runs only where the settings say so; the error says which."""
    table = '[runtime]\nkind = "python"\nfunction = "predict:run"\n'
    model = models.load(packages.TWO.write(tmp_path / "two", table))
    with pytest.raises(runtime.BadGraph, match=r"engine\.python = true"):
        runtime.opener()(model, ())
    ask(runtime.opener(python=True)(model, ()))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ValueError('no')", "cannot be imported: ValueError: no"),
        ("import nothing_of_that_name", "cannot be imported"),
        ("def other(batch): pass", "no function 'run'"),
    ],
)
def test_a_function_that_is_not_there_is_told(tmp_path: Path, source: str, words: str) -> None:
    """A module that cannot be imported, or has no such function, is a bad package: no other is hurt."""
    table = '[runtime]\nkind = "python"\nfunction = "predict:run"\n'
    folder = packages.TWO.write(tmp_path / "two", table)
    (folder / "predict.py").write_text(source)
    with pytest.raises(runtime.BadGraph, match=words):
        runtime.opener(python=True)(models.load(folder), ())


@pytest.mark.parametrize("answer", ["[]", "[batch['a']]", "[batch['a'][:1], batch['b'][:1]]"])
def test_a_function_that_gives_too_little_is_told(tmp_path: Path, answer: str) -> None:
    """One output for each of the manifest's, one row for each item."""
    table = '[runtime]\nkind = "python"\nfunction = "predict:run"\n'
    folder = packages.TWO.write(tmp_path / "two", table)
    (folder / "predict.py").write_text(f"def run(batch):\n    return {answer}\n")
    opened = runtime.opener(python=True)(models.load(folder), ())
    with pytest.raises(runtime.RunFailed, match="output"):
        opened.run({name: np.zeros((2, 3), np.float32) for name in "ab"})


def test_an_agent_pays_only_for_the_runtimes_that_it_has() -> None:
    """Neither the client for other servers nor the loader of Python functions is imported with the agent."""
    script = (
        "import sys; from edge_agent import agent; "
        "sys.exit(bool({'edge_agent.remote', 'edge_agent.functions', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
