"""Build a network and put weights from elsewhere into it, with nothing left unexplained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from eval_suite.classification.config import DataConfig
from eval_suite.classification.finetune_config import ModelConfig
from eval_suite.classification.layer_decay import classifier_names
from eval_suite.classification.probe_config import EncoderConfig
from spark.backbones.names import is_reference
from spark.backbones.own_network import build_own
from spark.backbones.timm_model import create_timm
from spark.backbones.timm_pyramid import build_pyramid, dense_part, for_size
from spark.errors import UserError
from spark.formats.encoder import EncoderInfo
from spark.formats.fitting import fitted
from spark.formats.reader import optional
from spark.formats.weights import Weights, read_weights, same_network, same_numbers
from spark.utils.state_dict import load_strictly

Network = TypeVar("Network")
FREE_OPTIONS = frozenset({"img_size", "window_size", "global_pool"})  # weights are fitted to these, or have none of it


class OwnClassifier(nn.Module):
    """A user's own network with a linear classifier on its coarsest map, averaged over positions."""

    def __init__(self, network: Any, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(network.channels[-1], classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        return self.head(self.network(x_BCHW)[-1].mean((2, 3)))


def starting_weights(init: str, model: ModelConfig | EncoderConfig, data: DataConfig) -> Weights:
    """Return what a network begins with.

    Args:
        init: see `spark.formats.weights`.
        model: that the weights are for.
        data: what the images are normalized by.

    Raises:
        UserError: it does not exist, is not of this network, or wants other images.
    """
    return read_weights(init, model.name, check=lambda info: _check_fits(init, info, model, data))


def build_classifier(
    model: ModelConfig, classes: int, start: Weights, seed: int, side: int | None = None
) -> nn.Module:
    """Return a classifier on the CPU whose backbone begins as `start` says, and its head at random.

    Args:
        model: what to build.
        classes: of the classifier.
        start: the weights.
        seed: of what begins at random.
        side: of images in pixels, for networks that are built for a size; None: for their usual one.

    Raises:
        UserError: there is no such model, it cannot be built so, or the weights are not of it.
    """
    if is_reference(model.name):
        torch.manual_seed(seed)
        network = build_own(model.name, 3, model.drop_path, model.options)
        _load(cast(nn.Module, network), start)
        return OwnClassifier(network, classes)
    classifier = _sized(
        lambda options: create_timm(model.name, classes=classes, drop_path=model.drop_path, options=options),
        model.options, seed, side,
    )
    _load(classifier, start, classifier_names(classifier))
    return classifier


def build_encoder(model: EncoderConfig, start: Weights, seed: int, side: int | None = None) -> Any:
    """Return a dense feature pyramid on the CPU that begins as `start` says.

    Args:
        model: what to build.
        start: the weights.
        seed: of what begins at random.
        side: as for `build_classifier`.

    Raises:
        UserError: as for `build_classifier`.
    """
    asked = None if is_reference(model.name) else side  # a user's own class is given its own options, no others
    pyramid: Any = _sized(lambda options: build_pyramid(model.name, 3, 0.0, options), model.options, seed, asked)
    _load(dense_part(pyramid), start)
    return pyramid


def _sized(
    build: Callable[[Mapping[str, Any]], Network], options: Mapping[str, Any], seed: int, side: int | None
) -> Network:
    """Build a network of a seed, for images of a size if it wants to know."""
    def seeded(chosen: Mapping[str, Any]) -> Network:
        torch.manual_seed(seed)
        return build(chosen)

    return seeded(options) if side is None else for_size(seeded, side, options)


def _load(model: nn.Module, start: Weights, heads: tuple[str, ...] = ()) -> None:
    """Copy weights into a model, of which only what begins with one of `heads` may stay as it is."""
    if start.state is not None:
        source = f"init '{start.record.checkpoint}'"
        state = fitted(start.state, model)
        load_strictly(model, state, source, may_lack=lambda name: name.startswith(heads) or optional(name))


def _check_fits(init: str, info: EncoderInfo, model: ModelConfig | EncoderConfig, data: DataConfig) -> None:
    """Raise UserError unless weights are of the network that is to be built, and its images are normalized alike."""
    problems = []
    if not same_network(info.model, model.name):
        problems.append(f"it is a {info.model}: pass model.name={info.model}")
    elif _deciding(info.options) != _deciding(model.options):
        problems.append(f"it was built with other options: pass model.options='{dict(info.options)}'")
    if info.in_chans != 3:
        problems.append(f"it takes {info.in_chans} channels, but the images have 3")
    for key, own, expected in (("mean", data.mean, info.mean), ("std", data.std, info.std)):
        if not same_numbers(own, expected, tolerance=1e-4):
            problems.append(f"it was trained with another {key}: pass data.{key}={list(expected)}")
    if problems:
        raise UserError(f"init '{init}' does not fit this run: {'; '.join(problems)}")


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in FREE_OPTIONS}
