"""Processes of one run: the group, its ranks, and numbers gathered from all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch

__all__ = ["default_device", "exchange", "is_first_process", "is_shared", "process_group"]

_PATIENCE = timedelta(days=7)


def default_device() -> str:
    """CUDA if there is one, under `torchrun` that of this process's local rank; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if is_shared() else "cuda"


def is_shared() -> bool:
    """Whether `torchrun` started this process, as one of several or not."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return not is_shared() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """(rank, number of processes): of the process group if there is one, else of a group that `torchrun` set the scene for."""
    dist = torch.distributed
    if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        yield 0, 1
    elif dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
    else:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # a process may wait long for one that has more to do; where one dies, torchrun ends the others
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        try:
            yield dist.get_rank(), dist.get_world_size()
        finally:
            dist.destroy_process_group()


def exchange(mine: Any, processes: int) -> list[Any]:
    """What each process has, by rank."""
    if processes == 1:
        return [mine]
    everyone = [None] * processes
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
