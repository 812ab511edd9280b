"""An MQTT broker: Mosquitto, with persistence and generous limits."""

import os
from collections.abc import Sequence
from pathlib import Path

from demo.servers.binaries import binary
from demo.servers.process import Process
from demo.servers.server import Server

CONFIGURATION = """\
listener {port} {host}
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages {max_inflight}
max_queued_messages 0
max_packet_size {max_packet_size}
persistence true
persistence_location {directory}/
autosave_interval 1
log_dest stderr
"""


class Mosquitto(Server):
    """An MQTT 3.1.1 and 5 broker that lets anyone in.

    A stop saves its sessions and retained messages; a kill loses about the last second of them.

    `max_inflight`: unacknowledged messages per client and direction (MQTT 5: the Receive Maximum).
    `max_packet_size`: bytes. `extra`: further lines for its configuration file, e.g. an `acl_file`.
    """

    name = "mosquitto"

    def __init__(
        self,
        directory: Path,
        *,
        max_inflight: int = 100,
        max_packet_size: int = 16 * 1024 * 1024,
        port: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, port)
        self._max_inflight = max_inflight
        self._max_packet_size = max_packet_size
        self._extra = extra

    async def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _launch(self, port: int) -> Process:
        program = binary("mosquitto")
        lines = CONFIGURATION.format(
            host=self.host,
            port=port,
            max_inflight=self._max_inflight,
            max_packet_size=self._max_packet_size,
            directory=self.directory.resolve(),
        )
        # As root it would become the user "mosquitto", who may have no way into our directory.
        user = ["user root"] if os.geteuid() == 0 else []
        configuration = self.directory / "mosquitto.conf"
        configuration.write_text("\n".join([lines, *user, *self._extra, ""]))
        return Process(self.name, [program.path, "-c", configuration], self.log, program.env)

    def _ready(self, process: Process) -> bool:
        # "mosquitto version 2.0.11 running" is logged once the listener is open.
        return any(line.endswith(" running") for line in process.output().splitlines())
