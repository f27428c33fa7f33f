r"""Your own network, complete: a ResNet for 32-pixel images whose total stride is 8, with a layer of its own.

    spark check tools/examples/cifar_resnet.py:CifarResNet
    spark pretrain configs/pretrain/resnet50_one_gpu.yaml model.name=tools/examples/cifar_resnet.py:CifarResNet \
        model.drop_path=0 'model.options={blocks: 3}' 'data.input_size=[32,32]' decoder.width=256 \
        data.root=photos out=runs/own

Everything a pyramid needs is `forward`, `channels`, `strides` and `example`; see `spark.Pyramid`. What is not
one of the layers that `spark` knows is named in `sparse_layers`. Afterwards:

    network = CifarResNet(blocks=3)
    network.load_state_dict(load_file("runs/own/encoder.safetensors"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark import COMPOSITION, OVER_IMAGE, LayerRule


class ContrastGate(nn.Module):
    """Scale each channel by how much it varies over the image: a layer that `spark` does not know."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        variance = x_BCHW.var((2, 3), correction=0, keepdim=True)
        return x_BCHW * torch.sigmoid(self.fc((variance + 1e-5).sqrt()))


class Block(nn.Module):
    """A ResNet's basic block, with the gate."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.gate = ContrastGate(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, at the block's stride."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.gate(self.norm2(self.conv2(y))) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Four stages at strides 1, 2, 4 and 8; pre-training sees the last three.

    Args:
        width: channels of the first stage; they double with each stage.
        blocks: of each stage.
        in_chans: channels of the images.
    """

    # The gate reduces over an image: while patches are hidden it must see the visible positions only, of one image at a
    # time. A composition calls other layers and sums, scales or concatenates what they return: zero stays zero. Where
    # no rule of spark's fits, LayerRule(masked=…, compact=…) takes your own, one function for each engine.
    sparse_layers: ClassVar[Mapping[type[nn.Module], LayerRule]] = {ContrastGate: OVER_IMAGE, Block: COMPOSITION}

    def __init__(self, width: int = 32, blocks: int = 2, in_chans: int = 3) -> None:
        super().__init__()
        self.in_chans = in_chans
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.channels = widths[1:]
        self.strides = [2, 4, 8]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        inputs = width
        for number, outputs in enumerate(widths):
            first = Block(inputs, outputs, stride=1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, the finest first."""
        x = self.stages[0](self.stem(x))
        maps = []
        for stage in self.stages[1:]:
            x = stage(x)
            maps.append(x)
        return maps

    def example(self) -> Tensor:
        """Return an input that reaches every layer."""
        return torch.zeros(1, self.in_chans, 16, 16)
