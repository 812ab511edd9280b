"""Reads a TOML file of settings into a typed struct, with errors that name file and field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from shared import link

_Settings = TypeVar("_Settings", bound=msgspec.Struct)


class BadSettings(ValueError):
    """A settings file that cannot be used: which file, which field, what is wrong."""


class Broker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach an MQTT broker."""

    host: str = "127.0.0.1"
    """Its name or address."""
    port: int = 1883
    """Mostly 1883, with TLS 8883."""
    username: str | None = None
    """For a broker that asks who we are."""
    password: str | None = None
    """It is readable by whoever can read the file."""
    ca_file: str | None = None
    """PEM of the authority that signed the broker's certificate; naming it turns TLS on."""
    cert_file: str | None = None
    """PEM of our own certificate, where the broker asks for one."""
    key_file: str | None = None
    """PEM of its key."""

    def address(self) -> link.Address:
        return link.Address(
            host=self.host,
            port=self.port,
            username=self.username,
            password=self.password,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
        )


def load(path: Path, kind: type[_Settings]) -> _Settings:
    """The settings in the TOML file at `path`. Raises BadSettings."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{path}: not TOML: {error}") from None
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise BadSettings(f"{path}: {error}") from None
