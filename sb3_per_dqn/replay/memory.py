"""How much memory there is, on the host and on devices, and the way from one to the other."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch as th

CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: th.device | None = None) -> int:
    """
    :param device: ``None``, or one without memory of its own, is the host
    :return: bytes that this process can still get: what the system says is available, or what is left of a container's
        limit (Linux control groups, version 2), whichever is less; of a CUDA device, what is free, or
        kept by PyTorch for reuse
    """
    if device is not None and device.type == "cuda":
        kept = th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device)
        return int(th.cuda.mem_get_info(device)[0]) + kept
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return min(available, max(limit - used + int(statistics["inactive_file"]), 0))  # cached files make room
    except (OSError, ValueError, KeyError):  # no container, or no limit
        return available


def to_device(array: npt.NDArray[Any], device: th.device) -> th.Tensor:
    """
    :param array: of any dtype that torch knows; not to be changed afterwards
    :param device: where to
    :return: a tensor of the same shape. To a CUDA device it is copied from pinned memory, and nobody waits for that
    """
    tensor = th.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def move_tensors(owner: Any, device: th.device) -> None:
    """
    :param owner: object whose attributes that are tensors move, and those that are devices are set
    :param device: where to
    """
    for name, value in vars(owner).items():
        if isinstance(value, th.Tensor):
            setattr(owner, name, value.to(device))
        elif isinstance(value, th.device):
            setattr(owner, name, device)
