"""Several processes that train one network: who is first, what each takes of a batch, and what they agree on.

They are started by ``torchrun`` or ``accelerate launch``, which tell each its rank; torch.distributed does the rest.
One process alone is first, takes all, and agrees with itself.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

__all__ = ["ProcessError", "Processes", "alone", "processes"]

Value = TypeVar("Value")


class ProcessError(RuntimeError):
    """The processes cannot be joined, or one of them has stopped."""


@dataclass(frozen=True)
class Processes:
    """This process among those that it was started with."""

    rank: int = 0
    """Its number, from 0."""
    count: int = 1
    """How many there are."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Its part of a batch of so many examples."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, of one dtype and device, by its sum over all processes."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _told(self):
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def agree(self, find: Callable[[], Value]) -> Value:
        """What the first process finds. The others wait for it, and are given it; an error of the first stops them."""
        if self.count == 1:
            return find()
        found: list[Any] = [None]
        if self.first:
            found[0] = find()
        with _told(self):
            distributed.broadcast_object_list(found)
        return found[0]

    def gather(self, mine: dict[Any, Value]) -> dict[Any, Value]:
        """The entries of all processes."""
        if self.count == 1:
            return mine
        parts: list[Any] = [None] * self.count
        with _told(self):
            distributed.all_gather_object(parts, mine)
        return {key: value for part in parts for key, value in part.items()}


_ALONE = Processes()
_here: list[Processes] = []
if hasattr(os, "register_at_fork"):  # a notebook's kernel is alone, and those that it forks may not be
    os.register_at_fork(after_in_child=_here.clear)


def processes() -> Processes:
    """Those that this process belongs to, joined at the first call.

    Raises:
        ProcessError: where they cannot be joined.
    """
    if not _here:
        _here.append(_joined())
    return _here[0]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What is done within is done by this process for itself: it takes all, and waits for none."""
    among = processes()
    _here[:] = [_ALONE]
    try:
        yield
    finally:
        _here[:] = [among]


def _joined() -> Processes:
    count = int(os.environ.get("WORLD_SIZE", 1))
    on_cpus = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if on_cpus and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ProcessError(
            "accelerate launch --cpu starts one process, whatever --num_processes says: on CPUs start them with "
            "torchrun --nproc-per-node 2 -m pdlib run …"
        )
    if count == 1:
        return _ALONE
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if "RANK" not in os.environ:
        raise ProcessError(f"WORLD_SIZE={count}, and no RANK says which this is: start all of them with torchrun")
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available() and not on_cpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and not on_cpus else "gloo"
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # they meet at what started them, if it is there
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60).close()
        # The first may be long at work alone, on figures and report, while the others wait; who dies is noticed.
        distributed.init_process_group(backend, timeout=timedelta(days=7))
        atexit.register(distributed.destroy_process_group)  # else its threads may abort the process as that ends
    except Exception as error:
        raise ProcessError(f"process {rank} of {count} cannot be joined to the others: {error}") from error
    return Processes(rank, count)


def _end_with(parent: int) -> None:
    """Ends this process when that which started it is gone, and can no longer end it where another fails."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _told(here: Processes) -> Iterator[None]:
    """A line for the library's error when another process has gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"process {here.rank} of {here.count} has stopped, because another one has: see what that one says; the "
            "same command goes on from the last checkpoint, with as many processes as you like "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
