"""All settings of a hub, each declared once with its unit; built at start and passed down."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shared import jobs, settings


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Http(_Section, frozen=True):
    """REST, metrics and the dashboard."""

    host: str = "127.0.0.1"
    """The address to listen on; there are no users, so keep it where only your own can reach it."""
    port: int = 8080
    """The port to listen on."""


class Api(_Section, frozen=True):
    """What the API takes, and how much of it at a time."""

    max_task_bytes: int = jobs.MAX_PAYLOAD
    """Bytes of one task's body."""
    max_batch_bytes: int = 64 << 20
    """Bytes of a batch of tasks."""
    max_batch_tasks: int = 10_000
    """Tasks of a batch."""
    max_bodies_bytes: int = 256 << 20
    """Bytes of all bodies that are being taken at one time."""
    max_waits: int = 1_000
    """Clients that wait for a task to end, with `?wait`."""
    max_exports: int = 4
    """Streams of results as Arrow; each holds a connection to PostgreSQL."""
    max_model_bytes: int = 4 << 30
    """Bytes of a model package that is pushed; PostgreSQL keeps them."""
    max_pushes: int = 4
    """Model packages that are taken at one time; each holds some MiB of memory."""
    max_fetches: int = 32
    """Model packages that are sent at one time; each holds some MiB of memory."""
    max_watchers: int = 200
    """Streams of events: dashboards, for the most part."""
    database_wait_s: float = 5.0
    """How long a request waits for a connection to PostgreSQL before it is answered 503."""


class Gateway(_Section, frozen=True):
    """The way between the agents and the store."""

    in_flight: int = 200
    """Messages that the broker may send before the first is acknowledged."""
    applying: int = 4
    """Transactions that apply batches at one time."""
    keepalive_s: int = 15
    """MQTT keepalive: a silent link is given up within twice this."""
    silent_after_s: float = 10.0
    """An agent not heard for so long gets no work and is shown as silent."""


class Leases(_Section, frozen=True):
    """The grant of an attempt."""

    ttl_s: float = 15.0
    """How long a lease lasts without progress."""
    look_every_s: float = 1.0
    """How often lost leases and passed deadlines are looked for."""


class Scheduler(_Section, frozen=True):
    """Order and placement of queued tasks."""

    batch: int = 2000
    """Tasks looked at in one pass, about."""
    idle_s: float = 1.0
    """A pass is made at least this often; events wake it at once."""
    aging_s: float = 300.0
    """Waiting so long raises a task's priority by one; 0: never."""
    aging_cap: int = 9
    """How many priorities waiting can raise a task, at most."""
    cooldown_s: float = 30.0
    """A task that was preempted is not preempted again for so long."""
    preempt_every_s: float = 0.2
    """How often tasks that could make room for more urgent ones are looked for, at most."""


class Leader(_Section, frozen=True):
    """Of several hubs one decides where tasks go."""

    ttl_s: float = 3.0
    """A leader that was not seen for so long is succeeded."""


class Retention(_Section, frozen=True):
    """What the database keeps."""

    results_months: int = 0
    """Whole months of results to keep; 0 keeps all."""
    tasks_days: int = 30
    """Days for which ended tasks are kept, with their idempotency keys; 0 keeps all."""


class Settings(_Section, frozen=True):
    """The file hub.toml."""

    database: str = "postgresql://127.0.0.1:5432/backhaul"
    """Address of PostgreSQL, in libpq's form."""
    connections: int = 12
    """To PostgreSQL, at most."""
    redis: str | None = None
    """Address of Redis or Valkey. It holds nothing that may not be lost; without it a hub runs alone."""
    broker: settings.Broker = settings.Broker()
    """Of the cloud, where the agents connect."""
    http: Http = Http()
    api: Api = Api()
    gateway: Gateway = Gateway()
    leases: Leases = Leases()
    scheduler: Scheduler = Scheduler()
    leader: Leader = Leader()
    retention: Retention = Retention()


def load(path: Path) -> Settings:
    """The settings in `path`. Raises BadSettings."""
    read = settings.load(path, Settings)
    for what, value in (
        ("connections", read.connections - 2),  # the API and the scheduler need one each
        *((f"api.{name}", value) for name, value in msgspec.structs.asdict(read.api).items()),
        ("gateway.in_flight", read.gateway.in_flight),
        ("gateway.applying", read.gateway.applying),
        ("scheduler.batch", read.scheduler.batch),
        ("leases.ttl_s", read.leases.ttl_s),
        ("leader.ttl_s", read.leader.ttl_s),
    ):
        if value <= 0:
            raise settings.BadSettings(f"{path}: {what} is too small")
    return read
