"""Several processes, one pre-training: who they are, what each computes, and what they must agree on.

Started by torchrun, each process ("rank") computes its slice of every batch on a device of its own. The order of the
images and the masks are drawn for the whole batch by each of them alike, so the numbers are those of one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spark.errors import UserError
from spark.utils.device import choose_device
from spark.utils.process_identity import end_with_parent

Result = TypeVar("Result")
LOST = "Connection closed by peer"  # what gloo says of a process that is gone


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, seen from one of them; by default there is only this one.

    Attributes:
        device: that this process computes on.
        rank: which one it is.
        size: how many there are.
        control: the group for what hosts say to each other, without waiting for devices; None if alone.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks to people."""
        return self.rank == 0

    def local_batch(self, batch: int) -> int:
        """Return how many images of a batch each process has.

        Raises:
            UserError: they cannot have equally many.
        """
        if batch % self.size:
            raise UserError(
                f"train.batch={batch} cannot be shared equally by {self.size} processes; "
                f"use e.g. {max(1, round(batch / self.size)) * self.size}"
            )
        return batch // self.size

    def slice(self, batch: Tensor) -> Tensor:
        """Return this process's part of something that is there for the whole batch."""
        return batch.chunk(self.size)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes; the host does not wait for it if the device is a GPU."""
        if self.size == 1:
            return value
        value = value.clone()
        distributed.all_reduce(value)
        return value / self.size

    def sum(self, count: int) -> int:
        """Return the sum over the processes; all of them must ask."""
        if self.size == 1:
            return count
        told = torch.tensor(count)
        distributed.all_reduce(told, group=self.control)
        return int(told)

    def any(self, flag: bool) -> bool:
        """Whether some process says so; all of them must ask."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag))
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self.control)
        return bool(told)

    def on_all(self, build: Callable[[], Result]) -> Result:
        """Let every process build the same; an error that they all meet is said once.

        Raises:
            UserError: this one failed, and none before it.
            SystemExit: another failed.
        """
        result, error = None, None
        try:
            result = build()
        except UserError as problem:
            error = problem
        failed: list[Any] = [None] * self.size
        if self.size > 1:
            distributed.all_gather_object(failed, error is not None, group=self.control)
        if error and not any(failed[: self.rank]):
            raise error
        if any(failed):
            raise SystemExit(2)
        return cast(Result, result)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Let the first process act while the others wait, and return to all what it returned: a plain value.

        Raises:
            SystemExit: in the others, when it failed; what was wrong is said once, by the first.
        """
        if self.size == 1:
            return action()
        outcome: list[Any] = [False, None]
        try:
            if self.is_main:
                outcome = [True, action()]
        finally:
            distributed.broadcast_object_list(outcome, group=self.control)
        if not outcome[0]:
            raise SystemExit(2)
        return outcome[1]

    def gather(self, value: Result) -> list[Result]:
        """Return, in the first process, what all have, in the order of ranks; [] in the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_main else None
        distributed.gather_object(value, gathered, group=self.control)
        return gathered or []

    def gradient_sync(self, parallel: nn.Module, exchange: bool) -> AbstractContextManager[None]:
        """Return a context whose backward passes add to this process's gradients, and `exchange` them or do not yet."""
        return nullcontext() if self.size == 1 or exchange else cast(DistributedDataParallel, parallel).no_sync()

    def log(self, line: str) -> None:
        """Tell people, once."""
        if self.is_main and line:
            print(line, file=sys.stderr)

    def broadcast(self, model: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        for tensor in model.state_dict().values() if self.size > 1 else ():
            distributed.broadcast(tensor, 0)


@contextmanager
def process_group(device: str, timeout: timedelta | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; `device` is as for `choose_device`.

    Args:
        device: what to compute on.
        timeout: how long processes wait for each other; by default torch's 10 (GPU) or 30 minutes.

    Raises:
        UserError: there are more processes than GPUs; or the body's own, or another process has ended.
    """
    chosen, size = choose_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(chosen)
        return
    if chosen.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"more processes are started here than the {there} CUDA devices; lower --nproc-per-node")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process, and ends it, unless it is killed itself
        end_with_parent()
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    control = distributed.new_group(backend="gloo", timeout=timeout)
    rank = distributed.get_rank()
    try:
        yield Ranks(chosen, rank, size, control)
    except UserError as error:
        raise UserError(f"process {rank}: {error}" if rank else str(error)) from error
    except RuntimeError as error:
        if LOST not in str(error):
            raise
        raise UserError(f"process {rank} ends, as another one did; that one's own message says why") from None
    distributed.destroy_process_group()  # not after an error, when the others may still wait for this one


