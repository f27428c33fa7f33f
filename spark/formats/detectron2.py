"""Detectron2's ResNet naming, and its `.pkl` weight files. Nothing in this file needs Detectron2."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from spark.errors import UserError
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import (
    CLASSIFIER,
    Conversion,
    Drops,
    Renaming,
    Rule,
    Table,
    per_stage,
    rename,
    unwrapped,
)
from spark.utils.files import atomic_path, write_text

TITLE = "Detectron2 ResNet naming"
USAGE = "the .yaml beside it holds the config values under which the weights mean what they meant"
CAUTION = (
    "Detectron2's files do not tell STRIDE_IN_1X1 nor INPUT.FORMAT: taken as False and RGB; the detectors of its model "
    "zoo that started from MSRA's ResNets are True and BGR, which no timm ResNet is"
)
TIMM_BACKBONE = "the timm backbone (d2_projects/modeling/timm_backbone.py) takes any timm pyramid's export as it is"

TABLE = Table(
    Rule("stem.conv1.weight", "conv1.weight"),
    Rule("stem.conv1.norm.{norm}", "bn1.{norm}"),
    *per_stage(
        {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"},
        Rule("{stage}.{block}.conv{conv}.weight", "{stage}.{block}.conv{conv}.weight"),
        Rule("{stage}.{block}.conv{conv}.norm.{norm}", "{stage}.{block}.bn{conv}.{norm}"),
        Rule("{stage}.{block}.shortcut.weight", "{stage}.{block}.downsample.0.weight"),
        Rule("{stage}.{block}.shortcut.norm.{norm}", "{stage}.{block}.downsample.1.{norm}"),
    ),
    example="layer1.0.conv1.weight",
)
TIMM_NET = "backbone.bottom_up.net."
IN_DETECTOR: Renaming = (
    (rf"{re.escape(TIMM_NET)}(.*)", r"timm.\1"),  # of d2_projects/modeling/timm_backbone.py
    (r"backbone\.bottom_up\.((?:stem|res[2-5])\..*)", r"\1"),  # behind an FPN
    (r"backbone\.((?:stem|res[2-5])\..*)", r"\1"),  # C4 detectors keep the last stage with the heads
    (r"roi_heads\.(res5\.\d.*)", r"\1"),
)
OUTSIDE: Drops = (
    (r"(?:stem\.fc|linear)\.(?:weight|bias)", CLASSIFIER),
    (r"backbone\.(fpn_lateral|fpn_output|top_block)[\d.].*", "feature pyramid, the detector's own"),
    (r"backbone\.bottom_up\.out_norms\..*|roi_heads\.(res5\.)?norm\..*", "norm of the detector's input"),
    (r"(proposal_generator|roi_heads|sem_seg_head|head)\..*", "detector's own"),
    (r"pixel_(mean|std)", "normalisation of the images"),
    (r"anchor_generator\..*", "detector's own"),
)
LACKING: Drops = ((r"fc\.(weight|bias)", CLASSIFIER),)
OBSTACLES = (
    (r"conv1\.\d+\..*", "a deep stem"),
    (r"layer\d\.\d+\.downsample\.2\..*", "an average-pooled shortcut, as ResNet-D has"),
    (r"layer\d\.\d+\.se\..*", "an attention gate"),
)


class Shape(NamedTuple):
    """What Detectron2's ResNet is built with."""

    depth: int
    groups: int = 1  # of the 3x3 convolutions
    width_per_group: int = 64  # channels of a group in the first stage


SHAPES: Mapping[str, Shape] = {
    "resnet18": Shape(18), "resnet34": Shape(34), "resnet50": Shape(50), "resnet101": Shape(101),
    "resnet152": Shape(152), "resnext50_32x4d": Shape(50, 32, 4), "resnext101_32x4d": Shape(101, 32, 4),
    "resnext101_32x8d": Shape(101, 32, 8), "resnext101_64x4d": Shape(101, 64, 4),
    "wide_resnet50_2": Shape(50, 1, 128), "wide_resnet101_2": Shape(101, 1, 128),
}  # fmt: skip


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether this is Detectron2's ResNet, or a detector with it or with a timm backbone inside."""
    inside = unwrapped(state, IN_DETECTOR).state
    return TABLE.recognized(inside) or any(key.startswith("timm.") for key in inside)


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map the backbone's names to timm's; what is the detector's own is dropped."""
    inside = unwrapped(state, IN_DETECTOR)
    if not TABLE.recognized(inside.state):  # a timm backbone
        timm_names: Renaming = ((r"timm\.(.*)", r"\1"),)
        return inside.then(rename(inside.state, timm_names, OUTSIDE, TITLE))
    return inside.then(TABLE.to_timm(inside.state, OUTSIDE, source=TITLE))


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map a plain ResNet from timm's naming, with an explanation for every key.

    Raises:
        UserError: the state has tensors that Detectron2's ResNet cannot hold (deep stems, gates, …).
    """
    for pattern, what in OBSTACLES:
        for key in state:
            if re.fullmatch(pattern, key):
                raise UserError(f"Detectron2's ResNet has no place for '{key}', {what}; {TIMM_BACKBONE}")
    if TABLE.example not in state:
        first = next(iter(state), "nothing")
        raise UserError(f"Detectron2's ResNet has no place for '{first}', of another network; {TIMM_BACKBONE}")
    return TABLE.from_timm(state, LACKING, source=TITLE)


def normalisation(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation, of pixels of 0..1, that a detector's file tells, as older ones do.

    Raises:
        UserError: its images are BGR.
    """
    if not {"pixel_mean", "pixel_std"} <= state.keys():
        return None
    mean, std = (tuple((state[key].double().flatten() / 255).tolist()) for key in ("pixel_mean", "pixel_std"))
    if len(mean) == 3 and mean[0] < mean[1] < mean[2]:  # of all usual sets of images, blue is the darkest
        raise UserError(f"the detector's images are BGR (pixel_mean {[round(255 * value, 2) for value in mean]}), "
                        "which those of no timm network are")
    return mean, std


def refuse_caffe2(state: Mapping[str, Tensor]) -> None:
    """Raise UserError for the names of Caffe2's ResNets, as of the model zoo's MSRA/R-50.pkl."""
    if "res2_0_branch2a_w" in state:
        raise UserError(
            "these are Caffe2's ResNet weights: most have the stride in their 1x1 convolutions and channels in the "
            "order BGR, which no timm ResNet has"
        )


def shape_of(model: str) -> Shape:
    """Return how Detectron2's ResNet is built to equal a timm model.

    Raises:
        UserError: Detectron2 has no such ResNet.
    """
    base = model.partition(".")[0]
    if base not in SHAPES:
        raise UserError(
            f"Detectron2's native ResNet cannot hold '{model}'; it holds {', '.join(SHAPES)}. Else {TIMM_BACKBONE}"
        )
    return SHAPES[base]


def resnet_values(model: str) -> dict[str, Any]:
    """Return the values below MODEL.RESNETS of Detectron2's config for a timm model."""
    shape = shape_of(model)
    return {
        "DEPTH": shape.depth,
        "NUM_GROUPS": shape.groups,
        "WIDTH_PER_GROUP": shape.width_per_group,
        # timm and torchvision put the stride on the 3x3 convolution, Caffe's ResNets on the 1x1.
        "STRIDE_IN_1X1": False,
        # Detectron2's default does not hold for ResNet-18/34, whose last stages are narrower.
        **({"RES2_OUT_CHANNELS": 64} if shape.depth < 50 else {}),
    }


def config_values(info: EncoderInfo, weights: Path) -> dict[str, dict]:
    """Return the config values (in Detectron2's yacs names) under which the weights mean what they meant."""
    return {
        "MODEL": {
            "WEIGHTS": str(weights),
            # Pixels are 0..255 in Detectron2.
            "PIXEL_MEAN": [round(255 * value, 4) for value in info.mean],
            "PIXEL_STD": [round(255 * value, 4) for value in info.std],
            "RESNETS": resnet_values(info.model),
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the weights as `.pkl` and the matching config values as `.yaml` beside it."""
    arrays = {name: _array(tensor.detach().cpu()) for name, tensor in state.items()}
    # These find a detector's backbone (backbone.bottom_up.…, or roi_heads.res5 of a C4) by the ends of names; without
    # them Detectron2 would load nothing, and only warn.
    content = {"model": arrays, "__author__": "spark-transfer", "matching_heuristics": True}
    text = yaml.safe_dump(config_values(info, destination), sort_keys=False)
    with atomic_path(destination) as temporary, open(temporary, "wb") as file:
        pickle.dump(content, file)
    values = destination.with_suffix(".yaml")
    write_text(values, text)
    return [destination, values]


def _array(tensor: Tensor) -> Any:
    """Return what NumPy can hold, which knows no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
