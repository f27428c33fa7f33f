"""Data parallelism: gradients and batch-norm statistics are those of the global batch in every process."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spark.sparse.synchronize import synchronize_batch_norms
from spark.utils.distributed import Ranks


def data_parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap the model so that backward passes leave the gradient of the global batch in every process.

    Batch norms are converted in place to synchronized ones.
    """
    if ranks.size == 1:
        return model
    synchronize_batch_norms(model)
    # Buffers need no broadcast: synchronized batch norms keep theirs equal.
    return DistributedDataParallel(
        model, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
        broadcast_buffers=False, gradient_as_bucket_view=True,
    )
