"""Several processes, one training: started by torchrun or by Detectron2's `launch`, on GPUs (NCCL) or CPUs (gloo)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import distributed, nn

from spark.errors import UserError
from spark.utils.distributed import Ranks, process_group

# The first process may compute the metrics alone, which takes minutes, while the others wait for it at a barrier. That
# a process is gone is noticed by whoever started it, not by this.
TIMEOUT = timedelta(hours=3)


@contextmanager
def processes(device: str) -> Iterator[Ranks]:
    """Join the other processes of this training, if there are any, and tell Detectron2 who is on this machine.

    Args:
        device: auto, cpu, cuda or, alone, one GPU such as cuda:1.

    Raises:
        UserError: the device is not there; or the body's own.
    """
    if distributed.is_initialized():  # by Detectron2's launch, which sets the GPU
        yield _launched(device)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:  # by torchrun
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"train.device={device}: of several processes each has its own: use auto, cpu or cuda")
        with process_group(device, TIMEOUT) as ranks:
            comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
            yield ranks
    else:
        yield Ranks(pick_device(device))


def _launched(device: str) -> Ranks:
    backend = distributed.get_backend()
    there = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
    if device not in ("auto", there.type):
        raise UserError(f"train.device={device}, but --num-gpus started processes for {there.type}; use torchrun")
    control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return Ranks(there, distributed.get_rank(), distributed.get_world_size(), control)


def pick_device(wanted: str) -> torch.device:
    """Return the device that `wanted` ("auto", "cpu", "cuda", "cuda:1") names."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else (
            torch.device(wanted)
        )
    except RuntimeError:
        raise UserError(f"train.device={wanted} is not a device: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device={wanted} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"train.device={wanted}, but there is no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device={wanted}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model so that backward passes leave the mean of all processes' gradients in each.

    Raises:
        UserError: it has batch norms that only GPUs can synchronize.
    """
    if ranks.size == 1:
        return model
    on_gpu = ranks.device.type == "cuda"
    if not on_gpu and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError("SyncBN of several processes needs GPUs: set the recipe's norms to naiveSyncBN or BN")
    options = {"device_ids": [ranks.device.index] if on_gpu else None}
    return create_ddp_model(model, broadcast_buffers=False, gradient_as_bucket_view=True, **options)


def equal_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give all processes the first one's buffers: without SyncBN, each has statistics of its own images.

    So all processes evaluate the model that the first one saves.
    """
    for buffer in model.buffers() if ranks.size > 1 else ():
        distributed.broadcast(buffer, 0)
