"""What a network is to pre-training: its stages, its costs, and what its layers were converted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spark.config.pretrain import PretrainConfig
from spark.methods.base import Method
from spark.methods.registry import build_method
from spark.sparse.patches import patches_per_image
from spark.utils.flops import flop_counter
from spark.utils.memory import kept_for_backward

BATCH = 2
"""Images that costs are measured on: the norms inside of some gates need more than one."""

BYTES_PER_PARAMETER = 4 * 4
"""Weight, gradient and the optimizer's two moments, in float32."""


@dataclass(frozen=True)
class ModelSummary:
    """Numbers of one network at one input size. FLOPs count a multiplication and an addition as two.

    Attributes:
        method: of the pre-training.
        engine: that the costs are of; "" where there is no choice.
        channels: of each feature map, the finest first.
        strides: likewise.
        dense_flops: of the encoder's forward pass over a whole image.
        encoder_flops: of its forward pass over what is visible of an image, as the engine computes it.
        decoder_flops: of the forward pass of densify and decoder.
        activations: bytes that the forward pass keeps of an image for the backward pass, in float32.
        fixed_memory: bytes of weights, gradients and the optimizer's state.
        converted: (class, count, what became of it), the most frequent first; blocks of layers are left out.
    """

    method: str
    model: str
    engine: str
    input_size: tuple[int, int]
    mask_ratio: float
    channels: Sequence[int]
    strides: Sequence[int]
    encoder_parameters: int
    decoder_parameters: int
    dense_flops: int
    encoder_flops: int
    decoder_flops: int
    activations: int
    fixed_memory: int
    converted: Sequence[tuple[str, int, str]]


def describe(config: PretrainConfig) -> ModelSummary:
    """Build a pre-training's model and run it forward once, on two images.

    Raises:
        UserError: there is no such network, it is refused, or the input size does not fit it.
    """
    model = build_method(config)
    height, width = config.data.input_size
    model.grid(height, width)  # refuses a size before anything is computed
    pyramid: Any = model.encoder
    images = torch.zeros(BATCH, pyramid.example().shape[1], height, width)
    encoder, decoder, kept = _forward_costs(model, images)
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    of_encoder = sum(parameter.numel() for parameter in pyramid.parameters() if parameter.requires_grad)
    return ModelSummary(
        method=config.method,
        model=config.model.name,
        engine=model.engine,
        input_size=(height, width),
        mask_ratio=model.mask_ratio,
        channels=list(pyramid.channels),
        strides=list(pyramid.strides),
        encoder_parameters=of_encoder,
        decoder_parameters=sum(trained) - of_encoder,
        dense_flops=_dense_flops(pyramid, images[:1]),
        encoder_flops=encoder // BATCH,
        decoder_flops=decoder // BATCH,
        activations=kept // BATCH,
        fixed_memory=sum(trained) * BYTES_PER_PARAMETER,
        converted=model.conversions,
    )


def _forward_costs(model: Method, images: Tensor) -> tuple[int, int, int]:
    """Return the FLOPs of encoder and decoder, and the bytes kept, of a batch."""
    grid = model.grid(*images.shape[-2:])
    mask = model.draw_mask(len(images), grid, torch.Generator().manual_seed(0))
    per_image = patches_per_image(mask != 0)
    with kept_for_backward(model) as kept:
        with flop_counter() as encoder:
            features = model.encode(images, mask, per_image)
        with flop_counter() as decoder:
            prediction = model.decode(features, mask, per_image)
        _loss = model.loss(prediction, images, mask, per_image)  # it holds on to what is kept, until that is counted
    return encoder.get_total_flops(), decoder.get_total_flops(), sum(kept.values())


def _dense_flops(encoder: nn.Module, image: Tensor) -> int:
    """Without a mask the encoder is dense again, and without memory its shapes are all that is computed."""
    with torch.no_grad(), flop_counter() as counter:
        encoder.to("meta")(image.to("meta"))
    return counter.get_total_flops()
