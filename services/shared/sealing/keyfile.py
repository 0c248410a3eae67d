"""The sealing keys of a cluster, in a file that the watcher and the compiler read (a mounted Secret, or `sluice up`'s directory)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from services.shared.sealing.ring import KeyRing, decode_keys
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

FILE: Final = "keys.json"


class BadKeyFile(Exception):
    """The key file cannot be used. The message says why, and never what is in it."""


class KeyFile:
    """`ring` follows the file whenever `refresh` is called."""

    def __init__(self, directory: Path) -> None:
        """Raises BadKeyFile."""
        self._path = directory / FILE
        self._stamp: tuple[int, int, int] | None = None
        self.ring = KeyRing()
        self._read()

    def refresh(self) -> bool:
        """Read the file again if it is another one; whether the keys are others now. A file that cannot be read changes nothing."""
        before = self.ring.ids
        try:
            self._read()
        except BadKeyFile as error:
            log.warning("the sealing keys stay as they are", error=error)
        return self.ring.ids != before

    def _read(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            keys = decode_keys(self._path.read_bytes())
        except OSError as error:
            raise BadKeyFile(f"the sealing keys cannot be read: {error}; `sluice keys create` makes them") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise BadKeyFile(f"{self._path} holds no sealing keys: {error}") from error
        if not keys:
            raise BadKeyFile(f"{self._path} holds no sealing key; `sluice keys create` makes one")
        self._stamp = stamp
        self.ring.replace(keys)
