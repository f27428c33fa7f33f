"""What a model's backbone starts from.

`init=` is one of

    an exported encoder   its weights; the recipe must have that network
    another checkpoint    of any format that `spark convert` reads
    scratch               the random weights from which pre-training starts, drawn from the run's seed
    timm:NAME             the supervised weights that timm offers for NAME
    detectron2            Detectron2's own random weights, for its own ResNets

Scratch is not Detectron2's own: timm starts a ResNet with its residual branches closed (the last norm of each block
is zero), Detectron2 with open ones, and a short training from open branches ends several AP higher. Compared with
that, pre-training, which starts from timm's, would pay for the difference. So `scratch` builds timm's network and
converts it, as an encoder is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from spark.config.choices import SCRATCH
from spark.errors import UserError
from spark.formats.detectron2 import SHAPES, Shape, from_timm
from spark.formats.encoder import EncoderInfo
from spark.formats.weights import read_weights, same_network, same_numbers
from spark.runs.record import Initialization

if TYPE_CHECKING:  # it needs Detectron2
    from d2_projects.engine.config import DetectConfig

DETECTRON2 = "detectron2"
TIMM_RECIPE = "d2_projects/mask_rcnn/mask_rcnn_timm_fpn.py"


@dataclass(frozen=True)
class Backbone:
    """The network in a recipe: timm's name and options, and whether it is Detectron2's own ResNet."""

    name: str
    options: Mapping[str, Any]
    native: bool


@dataclass(frozen=True)
class Start:
    """What a model starts from."""

    weights: dict[str, Tensor] | None  # for `load_backbone`; None: as the recipe builds it
    record: Initialization


def start_of(config: DetectConfig) -> Start:
    """Return what `init` stands for.

    Raises:
        UserError: it does not exist, is not of the recipe's network, or wants images normalized otherwise.
    """
    backbone, init = backbone_of(config.cfg), config.init
    if init == SCRATCH:
        return Start(random_weights(backbone, config.cfg.train.seed), Initialization(SCRATCH))
    if init == DETECTRON2:
        if not backbone.native:
            raise UserError(f"init={DETECTRON2}: {config.recipe} has timm's {backbone.name}; pass init={SCRATCH}")
        return Start(None, Initialization(DETECTRON2))

    def check(info: EncoderInfo) -> None:
        _require_same(config, backbone, info.model, info.options)
        _require_normalized(config, info.mean, info.std)

    found = read_weights(init, backbone.name, check)
    assert found.state is not None  # that is scratch
    return Start(_named(backbone, found.state), found.record)


def backbone_of(cfg: DictConfig) -> Backbone:
    """Return the network in a recipe's model.

    Raises:
        UserError: it is none that weights can be brought into.
    """
    bottom_up = cfg.model.backbone.get("bottom_up", cfg.model.backbone)
    if "name" in bottom_up:
        options: Any = OmegaConf.to_container(bottom_up.get("options") or OmegaConf.create())
        return Backbone(bottom_up.name, options, False)
    stages = bottom_up.get("stages", {})
    shape = Shape(*(stages.get(key, default) for key, default in (
        ("depth", 0), ("num_groups", 1), ("width_per_group", 64))))
    for name, known in SHAPES.items():
        if known == shape:
            return Backbone(name, {}, True)
    raise UserError(f"the recipe's backbone is neither one of Detectron2's ResNets ({', '.join(SHAPES)}) nor a "
                    "TimmBackbone")


def random_weights(backbone: Backbone, seed: int) -> dict[str, Tensor] | None:
    """Return timm's random weights for one of Detectron2's ResNets; None for a `TimmBackbone`, which has them."""
    if not backbone.native:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _named(backbone, timm.create_model(backbone.name, num_classes=0).state_dict())


def _named(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return from_timm(state).state if backbone.native else dict(state)


def _require_same(config: DetectConfig, backbone: Backbone, model: str, options: Mapping[str, Any]) -> None:
    """Raise UserError unless the recipe has this network."""
    base, init = model.partition(".")[0], config.init  # what follows the dot names other weights
    if not same_network(model, backbone.name):
        complaint = f"init '{init}' is a {model}, but {config.recipe} has a {backbone.name}"
        if not backbone.native:
            raise UserError(f"{complaint}: pass model.backbone.bottom_up.name={base}")
        if base in SHAPES:
            raise UserError(f"{complaint}: choose a recipe with that network, such as {TIMM_RECIPE} with "
                            f"model.backbone.bottom_up.name={base}")
        raise UserError(f"{complaint}. Detectron2's own ResNet cannot hold a {base}: use {TIMM_RECIPE} with "
                        f"model.backbone.bottom_up.name={base}")
    if dict(options) != dict(backbone.options):
        if backbone.native:
            raise UserError(f"init '{init}' is a {model} with options {dict(options)}, which Detectron2's own ResNet "
                            f"does not have: use {TIMM_RECIPE}")
        raise UserError(f"init '{init}' is a {model} with other options: "
                        f"pass model.backbone.bottom_up.options='{dict(options)}'")


def _require_normalized(config: DetectConfig, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise UserError unless the recipe normalizes images (0..255) as they were in training (0..1)."""
    model = config.cfg.model
    for key, given, expected in (("pixel_mean", model.pixel_mean, mean), ("pixel_std", model.pixel_std, std)):
        wanted = [round(255 * value, 3) for value in expected]
        if not same_numbers(given, wanted, tolerance=0.1):
            raise UserError(f"init '{config.init}' was trained with model.{key}={wanted}: pass that")
