"""Ports for programs that are told theirs, and listen some seconds later."""

from __future__ import annotations

import os
import socket
from itertools import islice


def free_ports(count: int) -> list[int]:
    """Below those that systems hand out to whoever connects: one of these may be gone by then."""
    first = 10_000 + os.getpid() * 10 % 20_000  # tests run in several processes
    return list(islice(filter(_is_free, range(first, 32_768)), count))


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True
