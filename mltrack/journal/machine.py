"""The machine that a process runs on, and the part of it where its process id is valid.

Invariant: two processes can look each other up by id exactly if boot id and pid namespace are equal.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Machine:
    """Where a process runs; an empty text means unknown."""

    host: str
    boot_id: str = ""
    """Of the running kernel: changes with every boot. Containers on one machine share it."""
    pid_namespace: str = ""
    """Differs between containers on one machine."""

    @classmethod
    def here(cls) -> Machine:
        """The machine of this process."""
        return cls(
            socket.gethostname(),
            _read(lambda: _BOOT_ID.read_text(encoding="ascii").strip()),
            _read(lambda: os.readlink("/proc/self/ns/pid")),
        )

    def sees(self, other: Machine) -> bool:
        """True if a process id of `other` can be looked up here."""
        if self.boot_id and other.boot_id:
            return (self.boot_id, self.pid_namespace) == (other.boot_id, other.pid_namespace)
        return self.host == other.host

    def is_later_boot_of(self, other: Machine) -> bool:
        """True if the same host has rebooted since, so no process from then is left."""
        return self.host == other.host and bool(self.boot_id and other.boot_id) and self.boot_id != other.boot_id


def _read(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return ""
