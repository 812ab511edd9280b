"""The real servers that tests run against, and how several workers share the tests.

A server that is not installed skips a test on a laptop and fails it where `CI=true`. The servers that live
for the whole session are not to be stopped: a test that wants to kill one starts its own.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest
import redis
from psycopg import sql
from xdist import remote
from xdist.scheduler import LoadFileScheduling

from demo import servers
from demo.servers import ports

END_OTHER_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"

WHOLE_SYSTEMS = ("tests/e2e/", "tests/integration/test_hubs.py")
"""Tests of ten and more processes each, which should have the machine almost to themselves."""


class Schedule(LoadFileScheduling):  # type: ignore[misc]  # which has no types
    """Which worker of several (`pytest -n`) runs what: file by file, and never two whole systems at once."""

    def __init__(self, config: pytest.Config, log: remote.Producer | None = None) -> None:
        config.option.loadscopereorder = False  # the long files are the first ones, and the last ones short
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return "whole systems" if nodeid.startswith(WHOLE_SYSTEMS) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # which `-p no:xdist` does not know
def pytest_xdist_make_scheduler(config: pytest.Config, log: remote.Producer) -> Schedule:
    return Schedule(config, log)


def pytest_configure() -> None:
    """Give each of several workers ports of its own; let no example fail for being slow beside the others."""
    hypothesis.settings.register_profile("busy machine", deadline=None)
    if os.environ.get("CI") != "true":  # where Hypothesis has a profile that does so too
        hypothesis.settings.load_profile("busy machine")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        ports.keep_to(int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Skip the test when a server's program is not there, or fail it in CI."""
    try:
        yield
    except servers.Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[servers.Mosquitto]:
    """A fresh MQTT broker of the test's own, to stop, kill and restart as it likes."""
    with _installed(), servers.Mosquitto(tmp_path / "mosquitto") as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgres]:
    """One PostgreSQL for all tests; see `database`."""
    with _installed(), servers.Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def _database(postgres: servers.Postgres) -> str:
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE test")
    return postgres.dsn_of("test")


@pytest.fixture
def database(_database: str) -> str:
    """How to connect to a PostgreSQL database that is empty, and nobody else's, when the test begins."""
    return emptied(_database)


def emptied(dsn: str) -> str:
    """The same database without anything in it, and without other sessions.

    It is emptied rather than made anew: making and dropping a database means some 300 files each time.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(END_OTHER_SESSIONS)
        for (schema,) in connection.execute(SCHEMAS).fetchall():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        connection.execute("CREATE SCHEMA public")
    return dsn


@pytest.fixture(scope="module")
def database_of_module(_database: str) -> str:
    """As `database`, for tests that leave nothing in it: empty when the first of the module begins."""
    return emptied(_database)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Valkey]:
    """One Valkey or Redis for all tests; see `redis_url`."""
    with _installed(), servers.Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: servers.Valkey) -> str:
    """How to connect to a Redis that is empty when the test begins."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url
