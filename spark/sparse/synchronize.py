"""Batch norms whose statistics are computed over all processes.

torch's SyncBatchNorm does not run on CPUs, and replacing a converted layer by it would undo the conversion. Here the
layer's own class is extended underneath its sparse form: the layer rule passes it only visible positions, so its
statistics are over the visible positions of all processes.
"""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules._functions import SyncBatchNorm as on_gpus
from torch.nn.modules.batchnorm import _BatchNorm

from spark.errors import UserError
from spark.sparse.convert import SparseLayer
from spark.sparse.extend_class import extended

SYNCHRONIZED_ALREADY = (nn.SyncBatchNorm, timm.layers.SyncBatchNormAct)
PLAIN = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)


class SynchronizedNorm(_BatchNorm):
    """Mixed into a batch norm's own class. Every process must have the same number of positions.

    Attributes:
        alone: whether this process has all images, for the time being, and asks no other.
    """

    alone = False

    def forward(self, x: Any) -> Any:
        """Normalize, and activate if the layer does."""
        if self.alone or not self.training:
            return super().forward(x)
        x = self._normalize(x)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            if name in self._modules:
                x = self._modules[name](x)  # type: ignore[misc]
        return x

    def _normalize(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if x.device.type == "cuda":
            if not x.is_contiguous(memory_format=torch.channels_last):
                x = x.contiguous()
            return on_gpus.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var, self.eps, share,
                distributed.group.WORLD, distributed.get_world_size(),
            )
        mean, variance, count = statistics_of_all(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        mean, scale, shift = (
            each.float().view(1, -1, 1, 1) for each in (mean, self.weight * (variance + self.eps).rsqrt(), self.bias)
        )
        return ((x - mean) * scale + shift).to(x.dtype)


def statistics_of_all(x_BCHW: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and (biased) variance of each channel over the positions of all processes, and their number.

    Uses float64, as E[x²] - E[x]² loses precision; this is cheap, with one number per channel.
    """
    variance, mean = torch.var_mean(x_BCHW.float(), dim=(0, 2, 3), correction=0)
    moments = torch.stack([mean.double(), variance.double() + mean.double() ** 2])
    size = distributed.get_world_size()
    mean, square = all_reduce(moments) / size
    return mean, square - mean**2, size * (x_BCHW.numel() // x_BCHW.shape[1])


def synchronize_batch_norms(network: nn.Module) -> None:
    """Change the class of each batch norm in place; names and state do not change.

    Raises:
        UserError: a kind of batch norm cannot be synchronized; the message names it.
    """
    for path, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SYNCHRONIZED_ALREADY):
            dense = _dense_class(type(layer))
            if dense not in PLAIN or not (layer.affine and layer.track_running_stats):
                raise UserError(
                    f"{path}: {dense.__name__} cannot be synchronised across processes; start without torchrun"
                )
            layer.__class__ = _synchronized(type(layer))  # type: ignore[assignment]


def _dense_class(own: type[nn.Module]) -> type[nn.Module]:
    return own.__bases__[-1] if issubclass(own, SparseLayer) else own


def _synchronized(own: type[nn.Module]) -> type[nn.Module]:
    """Extend a norm's class. A sparse norm is extended underneath its rule, which selects the norm's input."""
    dense = extended(_dense_class(own), SynchronizedNorm, "Synchronized")
    if not issubclass(own, SparseLayer):
        return dense
    return extended(dense, SparseLayer, "Sparse", (("_sparse_forward", own.__dict__["_sparse_forward"]),))
