"""The servers that the demo, the tests and the benchmarks start for themselves.

Each is a real server on a free port of the loopback interface, with its files in a directory of the caller's:

    async with servers.Postgres(directory) as postgres:
        connection = await psycopg.AsyncConnection.connect(postgres.dsn)

A plain `with` does the same where no event loop runs.
"""

from demo.servers.binaries import Binary, binary
from demo.servers.errors import Missing, ServerError, StartFailed
from demo.servers.mosquitto import Mosquitto
from demo.servers.postgres import Postgres
from demo.servers.process import Process
from demo.servers.server import Server
from demo.servers.valkey import Valkey

__all__ = [
    "Binary",
    "Missing",
    "Mosquitto",
    "Postgres",
    "Process",
    "Server",
    "ServerError",
    "StartFailed",
    "Valkey",
    "binary",
]
