"""The real servers that tests run against.

A server that is not installed skips a test on a laptop and fails it where `CI=true`. The servers that live
for the whole session are not to be stopped: a test that wants to kill one starts its own.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from demo import servers

_numbers = itertools.count(1)


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


@pytest.fixture
def database(postgres: servers.Postgres) -> Iterator[str]:
    """How to connect to an empty database of the test's own."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgres.dsn_of(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


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
