"""All settings of an agent, each declared once with its unit; built at start and passed down."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args
from urllib.parse import urlsplit

import msgspec

from shared import manifests, selectors, settings, signatures, topics

MIN_POLL_S: Final = 0.1


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Journal(_Section, frozen=True):
    """The agent's durable store."""

    max_bytes: int = 4 << 30
    """Quota on disk; at it new jobs are refused, while running ones still finish."""
    idempotency_keys: int = 50_000
    """How many keys are remembered; the oldest go first."""


class Intake(_Section, frozen=True):
    """Jobs of devices."""

    max_payload: int = 8 << 20
    """Bytes of one job."""
    in_flight: int = 256
    """Jobs that the broker may send before the first is acknowledged."""
    session_expiry_s: int = 86_400
    """How long the site's broker keeps jobs for an agent that is away."""
    queue_weights: dict[str, float] = {}
    """Weight of each queue in the fair share; 1 for a queue that is not named."""


class Engine(_Section, frozen=True):
    """Inference."""

    threads: int = 1
    """Batches that run at one time."""
    intra_op_threads: int = 1
    """Threads of ONNX Runtime inside one batch."""
    streams: int = 2
    """Batches of a model that run on an NVIDIA GPU at one time; never more than `threads`. Each takes the
    model's memory there."""
    provider: str = "auto"
    """The execution provider that models should run on. 'auto' is the best of a model's own order that
    the installed ONNX Runtime was built with; name 'tensorrt' or 'cuda' where the hardware is there, so
    that falling back to anything else is reported."""
    python: bool = False
    """Whether models may be Python functions of their packages. Such code may do whatever the agent may."""
    max_loaded: int | None = None
    """Models of this machine in memory at one time, at most. The one that was used longest ago makes room; it
    is served all the same, and its next task has it loaded again."""
    max_loaded_bytes: int | None = None
    """Bytes that those in memory are taken to need, likewise: of each what its manifest says (`memory_mb`),
    or else the size of its files."""
    reload_s: float = 30.0
    """How long tasks wait until a model that made room is back; then their attempts fail."""
    memory_limit_bytes: int | None = None
    """Of the GPU's memory that one model may take where the provider can be told (CUDA, ROCm, MIGraphX), its
    own `memory_mb` if that is less; what needs more fails."""
    window: int = 4096
    """Tasks that wait in memory for their turn; the others wait in the journal."""
    window_bytes: int = 32 << 20
    """Bytes of payload that may wait in memory with them."""


class Streams(_Section, frozen=True):
    """States of models that carry one from item to item; they are in memory alone."""

    max: int = 1024
    """Streams whose state is kept, at most; beyond it the one that was used longest ago begins anew."""
    idle_s: float = 3600.0
    """A stream without an item for so long begins anew."""


class TensorRT(_Section, frozen=True):
    """Engines that TensorRT builds, each in a process beside the agent, and keeps in `STATE/engines`."""

    max_bytes: int = 8 << 30
    """Disk for engines; those that no model has needed for longest make room. What is in use stays."""
    build_s: float = 3600.0
    """How long building one may take, and opening it once to see that it runs."""


class Overflow(_Section, frozen=True):
    """When a device's job goes to the hub instead of waiting here."""

    enabled: bool = True
    """Without it every job waits here, whatever the wait."""
    max_wait_s: float = 1.0
    """A job that would wait longer is handed over."""
    deadline_share: float = 0.5
    """A job that would wait longer than this share of what is left of its deadline is handed over."""
    max_handed_over: int = 2000
    """Tasks of ours that the hub may hold at one time."""
    keep_priority: int = 9
    """Jobs of this priority and above stay here whatever the wait, if the model is here."""
    reclaim_after_s: float = 2.0
    """With the link down for so long, handed-over tasks are taken back."""


class Uplink(_Section, frozen=True):
    """The way to the hub."""

    linger_s: float = 0.05
    """How long a result may wait for company in its batch."""
    backlog_records: int = 2000
    """More than this unsynced at connect, and live results get a fresh lane beside the old one."""
    in_flight: int = 32
    """Messages that the broker has not acknowledged, at most."""
    telemetry_s: float = 2.0
    """Between two heartbeats; a hub that left three unanswered is taken to be away."""
    keepalive_s: int = 5
    """MQTT keepalive: a silent link is given up within twice this."""
    reconnect_max_s: float = 15.0
    """Longest pause between two tries to reach the broker; the pauses are random up to it, so that a
    fleet that lost its broker does not come back in one instant."""


class Leases(_Section, frozen=True):
    """Work for the hub."""

    slots: int = 256
    """Tasks of the hub held at one time, at most; 0 for an agent that works for its site alone."""
    ahead_s: float = 0.5
    """How many seconds of work to hold, its own queue included."""


class Http(_Section, frozen=True):
    """The local port for health, metrics and status."""

    host: str = "127.0.0.1"
    """The address to listen on; there are no users, so keep it where only your own can reach it."""
    port: int = 9100
    """0 takes a free one."""


class Oip(_Section, frozen=True):
    """Inference by the Open Inference Protocol v2, at the local port."""

    enabled: bool = True
    """Whether it is served: whoever reaches the port may then give the agent work."""
    max_body: int = 16 << 20
    """Bytes of one request, packed and unpacked."""
    max_bodies: int = 64 << 20
    """Bytes of all requests that are being read or answered; who comes then is told to come again."""
    waiting: int = 256
    """Batches that clients wait for, at most; who comes then is told to come again."""
    answer_s: float = 60.0
    """How long a client is let wait. Its request runs all the same."""


class Registry(_Section, frozen=True):
    """Models that the hub wants this agent to serve, beside those of its own folder."""

    url: str | None = None
    """The hub's HTTP address, such as "https://hub.example". Without it no model is fetched."""
    ca_file: str | None = None
    """PEM of the authority that signed the hub's certificate, where the system does not know it."""
    trusted_keys: tuple[str, ...] = ()
    """Public keys, as `backhaul models keygen` prints them: a package is taken if one of them signed it."""
    unsigned: bool = False
    """Take packages whoever made them. Whoever can push to the hub may then run what they like here."""
    poll_s: float = 15.0
    """Between two questions to the hub, more or less."""
    max_bytes: int = 8 << 30
    """Disk for packages. What is kept to go back to makes room first; what would not fit then is refused."""
    max_package_bytes: int = 2 << 30
    """Of one package; a larger one is refused."""


class Settings(_Section, frozen=True):
    """The file agent.toml."""

    site: str
    """The site's name, as it stands in topics."""
    name: str
    """The agent's name at its site."""
    state: str
    """Folder of the journal."""
    models: str
    """Folder with one folder for each model."""
    broker: settings.Broker | None = None
    """Of the site, where the devices publish; none for an agent of the cloud pool."""
    uplink_broker: settings.Broker | None = None
    """Of the cloud; none for a site that stands alone."""
    labels: dict[str, str] = {}
    """What is said of this agent to selectors of tasks, as in `[labels]` with `gpu = "a2000"`. Every agent
    has the labels `site` and `agent`, its name, beside them."""
    journal: Journal = Journal()
    intake: Intake = Intake()
    engine: Engine = Engine()
    streams: Streams = Streams()
    tensorrt: TensorRT = TensorRT()
    overflow: Overflow = Overflow()
    uplink: Uplink = Uplink()
    leases: Leases = Leases()
    http: Http = Http()
    oip: Oip = Oip()
    registry: Registry = Registry()

    @property
    def agent(self) -> topics.Agent:
        return topics.Agent(self.site, self.name)


def load(path: Path) -> Settings:
    """The settings in `path`, relative folders taken from where the file is. Raises BadSettings."""
    read = settings.load(path, Settings)
    try:
        topics.check_name(read.site, "site")
        topics.check_agent_name(read.name)
        for key, label in read.labels.items():
            selectors.check(key, label)
    except (topics.BadTopic, selectors.BadSelector) as wrong:
        raise settings.BadSettings(f"{path}: {wrong}") from None
    if read.broker is None and read.uplink_broker is None:
        raise settings.BadSettings(
            f"{path}: no [broker] and no [uplink_broker]: no work could come; name one"
        )
    if taken := read.labels.keys() & set(selectors.RESERVED):
        raise settings.BadSettings(
            f"{path}: [labels] {', '.join(sorted(taken))}: every agent has this label already, its own site "
            "and name; choose another key"
        )
    for what, value in (
        ("engine.threads", read.engine.threads),
        ("engine.streams", read.engine.streams),
        ("engine.window", read.engine.window),
        ("engine.max_loaded", read.engine.max_loaded),
        ("engine.max_loaded_bytes", read.engine.max_loaded_bytes),
        ("engine.memory_limit_bytes", read.engine.memory_limit_bytes),
        ("streams.max", read.streams.max),
        ("tensorrt.build_s", read.tensorrt.build_s),
        ("intake.in_flight", read.intake.in_flight),
        ("uplink.in_flight", read.uplink.in_flight),
        ("oip.waiting", read.oip.waiting),
        ("oip.max_body", read.oip.max_body),
    ):
        if value is not None and value < 1:
            raise settings.BadSettings(f"{path}: {what} = {value}: at least 1 is needed")
    if read.engine.provider != "auto" and read.engine.provider not in get_args(manifests.Provider):
        known = ", ".join(get_args(manifests.Provider))
        raise settings.BadSettings(
            f"{path}: engine.provider {read.engine.provider!r} is none of auto, {known}"
        )
    try:
        _check_registry(read)
    except ValueError as wrong:
        raise settings.BadSettings(f"{path}: [registry] {wrong}") from None
    base = path.resolve().parent
    return msgspec.structs.replace(read, state=str(base / read.state), models=str(base / read.models))


def _check_registry(read: Settings) -> None:
    """Raises ValueError, which says what is wrong."""
    policy = read.registry
    for key in policy.trusted_keys:
        signatures.read_key(key)
    if policy.url is None:
        return
    parts = urlsplit(policy.url)
    parts.port  # noqa: B018 - raises ValueError for what is no port
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ValueError(
            f"url {policy.url!r} is no address of a hub; it would be https://HOST or http://HOST:PORT"
        )
    if not policy.trusted_keys and not policy.unsigned:
        raise ValueError(
            "trusted_keys: at least one is needed to fetch models, the public key of who signs them; or take "
            "packages whoever made them, by unsigned = true"
        )
    if read.uplink_broker is None:
        raise ValueError("url: the hub learns from heartbeats what is for an agent; name [uplink_broker]")
    if policy.poll_s < MIN_POLL_S:
        raise ValueError(f"poll_s = {policy.poll_s:g}: at least {MIN_POLL_S:g} is needed")
