"""Detectron2's ResNet naming, and its `.pkl` weight files. Nothing in this file needs Detectron2."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import Tensor

from spark.errors import UserError
from spark.files import atomic_path, write_text
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Drops, Renaming, rename

_STAGES = {1: "res2", 2: "res3", 3: "res4", 4: "res5"}
FROM_TIMM: Renaming = (
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    *(
        rule
        for stage, res in _STAGES.items()
        for rule in (
            (rf"layer{stage}\.(\d+)\.conv(\d)\.weight", rf"{res}.\1.conv\2.weight"),
            (rf"layer{stage}\.(\d+)\.bn(\d)\.(\w+)", rf"{res}.\1.conv\2.norm.\3"),
            (rf"layer{stage}\.(\d+)\.downsample\.0\.weight", rf"{res}.\1.shortcut.weight"),
            (rf"layer{stage}\.(\d+)\.downsample\.1\.(\w+)", rf"{res}.\1.shortcut.norm.\2"),
        )
    ),
)
DROPS: Drops = ((r"fc\.(weight|bias)", "classifier, not part of a detection backbone"),)

DEPTHS: Mapping[str, int] = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}


def convert(state: Mapping[str, Tensor]) -> Conversion:
    """Map a plain ResNet from timm's naming, with an explanation for every key.

    Raises:
        UserError: the state has tensors that Detectron2's ResNet cannot hold (deep stems, SE gates, …).
    """
    return rename(state, FROM_TIMM, DROPS, source="Detectron2 ResNet naming")


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `convert(state).state`."""
    return convert(state).state


def depth_of(model: str) -> int:
    """Return the depth of Detectron2's ResNet for a timm model name.

    Raises:
        UserError: Detectron2 has no such ResNet.
    """
    base = model.partition(".")[0]
    if base not in DEPTHS:
        raise UserError(
            f"Detectron2's native ResNet cannot hold '{model}'; it holds {', '.join(DEPTHS)}. "
            "Other networks need a timm backbone in Detectron2"
        )
    return DEPTHS[base]


def config_values(info: EncoderInfo, weights: Path) -> dict[str, dict]:
    """Return the config values (in Detectron2's yacs names) under which the weights mean what they meant."""
    return {
        "MODEL": {
            "WEIGHTS": str(weights),
            # Pixels are 0..255 in Detectron2.
            "PIXEL_MEAN": [round(255 * value, 4) for value in info.mean],
            "PIXEL_STD": [round(255 * value, 4) for value in info.std],
            "RESNETS": {
                "DEPTH": depth_of(info.model),
                # timm and torchvision put the stride on the 3x3 convolution, Caffe's ResNets on the 1x1.
                "STRIDE_IN_1X1": False,
                # Detectron2's default for ResNet-18/34, whose last stages are narrower.
                **({"RES2_OUT_CHANNELS": 64} if depth_of(info.model) < 50 else {}),
            },
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the weights as `.pkl` and the matching config values as `.yaml` beside it."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    content = {"model": arrays, "__author__": "spark-transfer", "matching_heuristics": False}
    with atomic_path(destination) as temporary, open(temporary, "wb") as file:
        pickle.dump(content, file)
    values = destination.with_suffix(".yaml")
    write_text(values, yaml.safe_dump(config_values(info, destination), sort_keys=False))
    return [destination, values]
