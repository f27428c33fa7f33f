"""The two ways in which an FCMAE model's weights are drawn (see `config.FCMAEConfig.initialization`)."""

from __future__ import annotations

from torch import nn

from spark.methods.fcmae.decoder import PatchDecoder

STD = 0.02
HALVING = (2, 2)  # the stride of the layers between stages


def draw_decoder(decoder: PatchDecoder) -> None:
    """Draw a decoder's weights as ConvNeXt draws its own."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _draw(layer, STD)


def draw_as_the_original(encoder: nn.Module, decoder: PatchDecoder) -> None:
    """Draw weights anew with a deviation of 1, cut at 2, as the original's code does though it may not mean to.

    The halving layers keep the deviation of .02, the decoder's linear layers what torch gives them.
    """
    for layer in (*encoder.modules(), *decoder.modules()):
        if isinstance(layer, nn.Conv2d) and layer.stride != HALVING:
            _draw(layer, 1.0)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            _draw(layer, 1.0)


def _draw(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.trunc_normal_(layer.weight, std=std)  # cut at 2, not at two deviations
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
