"""Free memory of a device; for main memory, within the limits of the process's cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# (limit, usage, key of reclaimable usage in memory.stat) for cgroups v2 and v1.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device. For main memory: the smallest of the system's and the cgroups'."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    system = int(psutil.virtual_memory().available)
    return min([system, *cgroup_rooms(CGROUPS, MEMBERSHIP)])


def cgroup_rooms(root: Path, membership: Path) -> Iterator[int]:
    """Free bytes of each cgroup above this process that has a limit.

    Args:
        root: mount point of the cgroups.
        membership: the file that names the cgroups of this process, /proc/self/cgroup.
    """
    try:
        lines = membership.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        own = base / path.lstrip("/")
        # In a container the path may be the host's; the mount point is then the process's group.
        for folder in (own, *own.parents):
            if folder != base and base not in folder.parents:
                break
            room = _room(folder)
            if room is not None:
                yield room


def _room(folder: Path) -> int | None:
    """Bytes that are free in one cgroup; None if it has no limit."""
    for limit_name, usage_name, reclaimable in FILES:
        try:
            limit = (folder / limit_name).read_text("utf-8").strip()
            if not limit.isdecimal() or int(limit) >= 2**60:  # "max", or its equivalent in v1
                continue
            used = int((folder / usage_name).read_text("utf-8"))
            stat = (folder / "memory.stat").read_text("utf-8").split()
        except (OSError, ValueError):
            continue
        cached = int(stat[stat.index(reclaimable) + 1]) if reclaimable in stat else 0
        return max(0, int(limit) - max(0, used - cached))
    return None
