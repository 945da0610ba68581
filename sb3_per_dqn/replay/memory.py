"""How much memory there is."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """
    :return: bytes that this process can still get: what the system says is available, or what is left of a container's
        limit (Linux control groups, version 2), whichever is less
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return min(available, max(limit - used + int(statistics["inactive_file"]), 0))  # cached files make room
    except (OSError, ValueError, KeyError):  # no container, or no limit
        return available
