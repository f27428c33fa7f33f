"""Build a network and put weights from elsewhere into it, with nothing left unexplained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from eval_suite.classification.config import SCRATCH, DataConfig
from eval_suite.classification.finetune_config import ModelConfig
from eval_suite.classification.layer_decay import classifier_names
from spark.backbones.names import is_reference, unknown_model
from spark.backbones.own_network import build_own
from spark.backbones.timm_pyramid import (
    FIXED_OPTIONS,
    OPTIONS_ELSEWHERE,
    REFUSALS,
    build_pyramid,
    cannot_build,
    dense_part,
)
from spark.errors import UserError
from spark.formats.encoder import WEIGHTS
from spark.formats.reader import encoder_of, optional
from spark.runs.record import Initialization
from spark.training.initialize import TIMM, timm_weights
from spark.utils.files import sha256

NAMED = 3  # tensors in a message


class OwnClassifier(nn.Module):
    """A user's own network with a linear classifier on its coarsest map, averaged over positions."""

    def __init__(self, network: Any, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(network.channels[-1], classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        return self.head(self.network(x_BCHW)[-1].mean((2, 3)))


@dataclass(frozen=True)
class Start:
    """What a network begins with: weights as they are named in the dense encoder, or None for its random ones."""

    weights: dict[str, Tensor] | None
    record: Initialization


def start_of(init: str, name: str, options: Mapping[str, Any], data: DataConfig) -> Start:
    """Return what `init` stands for.

    Args:
        init: `scratch`, `timm:NAME`, a run's folder, an exported encoder, or a checkpoint of another known format.
        name: of the network that the weights are for.
        options: that it is built with.
        data: what the images are normalised by.

    Raises:
        UserError: it does not exist, is not of this network, or wants other images.
    """
    if init == SCRATCH:
        return Start(None, Initialization(SCRATCH))
    if init.startswith(TIMM):
        supervised = init.removeprefix(TIMM)
        weights = dict(timm_weights(supervised, in_chans=3).state)
        pretrained = timm.get_pretrained_cfg(supervised)
        _check_fits(init, supervised, {}, 3, pretrained.mean, pretrained.std, name, options, data)
        return Start(weights, Initialization("supervised", init))
    path = Path(init)
    encoder = encoder_of(path, name)
    info = encoder.info
    _check_fits(init, info.model, info.options, info.in_chans, info.mean, info.std, name, options, data)
    file = path / WEIGHTS if path.is_dir() else path
    record = Initialization(info.method, str(file), sha256(file), info.epochs, info.recipe_hash)
    return Start(encoder.state, record)


def build_classifier(model: ModelConfig, classes: int, start: Start, seed: int) -> nn.Module:
    """Return a classifier on the CPU whose backbone begins as `start` says, and its head at random.

    Raises:
        UserError: there is no such model, it cannot be built so, or the weights are not of it.
    """
    torch.manual_seed(seed)
    if is_reference(model.name):
        network = build_own(model.name, 3, model.drop_path, model.options)
        if start.weights is not None:
            load_weights(network, start.weights, (), start.record.checkpoint)  # type: ignore[arg-type]
        return OwnClassifier(network, classes)
    classifier = _build_timm(model, classes)
    if start.weights is not None:
        load_weights(classifier, start.weights, classifier_names(classifier), start.record.checkpoint)
    return classifier


def build_encoder(name: str, options: Mapping[str, Any], start: Start, seed: int) -> Any:
    """Return a dense feature pyramid on the CPU that begins as `start` says.

    Raises:
        UserError: as for `build_classifier`.
    """
    torch.manual_seed(seed)
    pyramid = build_pyramid(name, 3, 0.0, options)
    if start.weights is not None:
        load_weights(dense_part(pyramid), start.weights, (), start.record.checkpoint)  # type: ignore[arg-type]
    return pyramid


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], heads: tuple[str, ...], source: str | None) -> int:
    """Copy `weights` into `model`, of which only what begins with one of `heads` may stay as it is.

    Returns:
        The number of tensors copied.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape.
    """
    own = model.state_dict()
    required = {name for name in own if not (name.startswith(heads) or optional(name))}
    problems = [
        *(f"'{name}' is missing" for name in sorted(required - weights.keys())),
        *(f"'{name}' has no place in the model" for name in sorted(weights.keys() - own.keys())),
        *(f"'{name}' is {_shape(weights[name])} instead of {_shape(own[name])}"
          for name in own if name in weights and weights[name].shape != own[name].shape),
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"init '{source}' does not fit the model: {'; '.join(problems[:NAMED])}{more}")
    model.load_state_dict({**own, **weights})
    return len(weights)


def _build_timm(model: ModelConfig, classes: int) -> nn.Module:
    name, options = model.name, model.options
    if not timm.is_model(name):
        raise unknown_model(name)
    for option in options:
        if option in OPTIONS_ELSEWHERE or option in FIXED_OPTIONS:
            raise UserError(f"model.options must not have '{option}'")
    try:
        return timm.create_model(name, num_classes=classes, drop_path_rate=model.drop_path, **options)
    except REFUSALS as error:
        if not isinstance(error, TypeError) or "drop_path_rate" not in str(error):
            raise cannot_build(name, options, error) from None
    if model.drop_path:
        raise UserError(f"{name} takes no drop path; pass model.drop_path=0")
    try:
        return timm.create_model(name, num_classes=classes, **options)
    except REFUSALS as error:
        raise cannot_build(name, options, error) from None


def _check_fits(
    init: str, model: str, options: Mapping[str, Any], in_chans: int, mean: Sequence[float], std: Sequence[float],
    name: str, given: Mapping[str, Any], data: DataConfig,
) -> None:
    """Raise UserError unless weights are of a network that is to be built, and its images are normalised alike."""
    problems = []
    same = model.rpartition(":")[2] == name.rpartition(":")[2] if is_reference(model) else (
        model.partition(".")[0] == name.partition(".")[0])  # what follows the dot names other weights
    if not same or is_reference(model) != is_reference(name):
        problems.append(f"it is a {model}: pass model.name={model}")
    elif dict(options) != dict(given):
        problems.append(f"it was built with other options: pass model.options='{dict(options)}'")
    if in_chans != 3:
        problems.append(f"it takes {in_chans} channels, but the images have 3")
    for key, own, expected in (("mean", data.mean, mean), ("std", data.std, std)):
        if len(own) != len(expected) or not all(map(_close, own, expected)):
            problems.append(f"it was trained with another {key}: pass data.{key}={list(expected)}")
    if problems:
        raise UserError(f"init '{init}' does not fit this run: {'; '.join(problems)}")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=1e-4)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
