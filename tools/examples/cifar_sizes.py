"""Sizes of the network in cifar_resnet.py, as classes: what a study's axis of models names."""

from __future__ import annotations

from cifar_resnet import CifarResNet


class Width16(CifarResNet):
    """0.3 million parameters."""

    def __init__(self) -> None:
        super().__init__(width=16, blocks=1)


class Width24(CifarResNet):
    """0.7 million parameters."""

    def __init__(self) -> None:
        super().__init__(width=24, blocks=1)
