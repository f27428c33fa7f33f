"""Build a classifier and put an exported encoder's weights into it, with nothing left unexplained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from eval_suite.finetune_config import SCRATCH, FinetuneConfig
from eval_suite.schema import Initialisation
from spark.errors import UserError, nearest
from spark.files import sha256
from spark.formats.encoder import WEIGHTS, Encoder, load_encoder


def build_model(config: FinetuneConfig, num_classes: int) -> tuple[nn.Module, Initialisation]:
    """Return a timm classifier on the CPU, initialised as `config.init` says, and where that came from.

    Raises:
        UserError: the model is unknown, or the encoder is not of this model.
    """
    torch.manual_seed(config.seed)
    name = config.model.name
    if not timm.is_model(name):
        raise UserError(f"model.name='{name}' is not a timm model.{nearest(name, timm.list_models())}")
    options = {"drop_path_rate": config.model.drop_path} if config.model.drop_path else {}
    try:
        model = timm.create_model(name, num_classes=num_classes, **options)
    except TypeError as error:
        raise UserError(f"{name} takes no drop path ({error}); pass model.drop_path=0") from None
    if config.init == SCRATCH:
        return model, Initialisation(SCRATCH)

    encoder = load_encoder(config.init)
    _check_fits(encoder, config)
    head = model.pretrained_cfg["classifier"].partition(".")[0] + "."
    count = load_weights(model, encoder.state, head, config.init)
    print(f"{config.init}: {count} tensors matched; {head}* starts fresh", file=sys.stderr)
    weights = Path(config.init)
    weights = weights / WEIGHTS if weights.is_dir() else weights
    return model, Initialisation(encoder.info.method, str(weights), sha256(weights), encoder.info.epochs,
                                 encoder.info.recipe_hash)


def load_weights(model: nn.Module, weights: dict[str, Tensor], head: str, source: str) -> int:
    """Copy `weights` into `model`, of which only names that start with `head` may stay as they are.

    Returns:
        The number of tensors copied.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape.
    """
    own = model.state_dict()
    # The count of batches only matters to a BatchNorm without momentum; some formats do not keep it.
    required = {name for name in own if not (name.startswith(head) or name.endswith("num_batches_tracked"))}
    problems = [
        *(f"'{name}' is missing" for name in sorted(required - weights.keys())),
        *(f"'{name}' has no place in the model" for name in sorted(weights.keys() - own.keys())),
        *(f"'{name}' is {_shape(weights[name])} instead of {_shape(own[name])}"
          for name in own if name in weights and weights[name].shape != own[name].shape),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"init '{source}' does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict({**own, **weights})
    return len(weights)


def _check_fits(encoder: Encoder, config: FinetuneConfig) -> None:
    info, name, data = encoder.info, config.model.name, config.data
    problems = []
    if info.model.partition(".")[0] != name.partition(".")[0]:  # what follows the dot names other weights
        problems.append(f"it is a {info.model}: pass model.name={info.model}")
    if info.in_chans != 3:
        problems.append(f"it takes {info.in_chans} channels, but the images have 3")
    for key, given, expected in (("mean", data.mean, info.mean), ("std", data.std, info.std)):
        if not _close(given, expected):
            problems.append(f"it was trained with another {key}: pass data.{key}={list(expected)}")
    if problems:
        raise UserError(f"init '{config.init}' does not fit this run: {'; '.join(problems)}")


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
