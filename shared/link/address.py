"""Where a broker is and how it knows us."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Address:
    """A broker, and our credentials there. Naming any of the three PEM files turns TLS on.

    `ca_file`: the authorities that may have signed the broker's certificate; the system's own if it is None.
    `cert_file`, `key_file`: our own certificate, for a broker that asks for one.
    """

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def encrypted(self) -> bool:
        return any((self.ca_file, self.cert_file, self.key_file))

    def tls(self) -> ssl.SSLContext:
        """A context that verifies the broker and its name. Reads the files anew, so that a renewed
        certificate is used from the next connection on. Raises OSError (of which SSLError is one).
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context
