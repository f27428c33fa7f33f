"""Warm starts: weights from elsewhere for a run that begins. (Going on with a run is another matter: resume.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from spark.errors import UserError, nearest
from spark.formats.reader import bare, optional, read_tensors
from spark.methods.spark.model import SparK
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS

TIMM = "timm:"
ENOUGH = 0.9  # share of the tensors; a person who wants less has to say so
NAMED = 3  # tensors in a message


class Weights(NamedTuple):
    """Tensors to begin with, named as in `spark.SparK` or, without a decoder, as in the dense encoder."""

    state: Mapping[str, Tensor]
    whole: bool
    format: str


def initialize(model: SparK, source: str, in_chans: int, allow_partial: bool = False) -> str:
    """Copy what matches, by name and shape, into the model; return a line that says how much that was.

    Args:
        model: it is changed in place.
        source: `timm:NAME`, a run's folder, an exported encoder, or a checkpoint of any format that we read.
        in_chans: of the images; timm adapts its own weights to it.
        allow_partial: be content with less than nine tenths of the tensors.

    Raises:
        UserError: nothing or too little matches, or there is nothing to read.
    """
    weights = timm_weights(source.removeprefix(TIMM), in_chans) if source.startswith(TIMM) else _from_file(Path(source))
    own = model.state_dict() if weights.whole else model.dense_state()  # both share the parameters' memory
    given = weights.state
    matching = [name for name in own if name in given and bare(given[name].shape) == bare(own[name].shape)]
    wanted = [name for name in own if not optional(name.removeprefix("encoder.network."))]
    lacking = [name for name in wanted if name not in set(matching)]
    found, part = len(wanted) - len(lacking), "encoder and decoder" if weights.whole else "the encoder"
    line = f"init={source} ({weights.format}): {found} of {len(wanted)} tensors of {part} matched"
    if lacking:
        line += f"; not {', '.join(lacking[:NAMED])}" + (" …" if len(lacking) > NAMED else "")
    if not found or (found < ENOUGH * len(wanted) and not allow_partial):
        raise UserError(f"{line}; is it another model? init_allow_partial=true takes less than {ENOUGH:.0%}")
    with torch.no_grad():
        for name in matching:
            own[name].copy_(given[name].reshape(own[name].shape))
    return line


def _from_file(path: Path) -> Weights:
    if not path.exists():
        raise UserError(f"init='{path}' does not exist; pass a run's folder, a checkpoint, or {TIMM}NAME")
    last = path / CHECKPOINTS / LAST
    return Weights(*read_tensors(last if last.is_file() else path))


def timm_weights(name: str, in_chans: int) -> Weights:
    """Return the weights that timm offers for a model, downloaded if need be, without the classifier.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    if not timm.is_model(name):
        raise UserError(f"init={TIMM}{name}: unknown model.{nearest(name, timm.list_models())}")
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_chans)
    except Exception as error:  # of whatever library downloads
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"timm cannot load the weights of '{name}' ({why}); "
            "without a network, download them elsewhere and pass init=FILE"
        ) from None
    return Weights(network.state_dict(), False, "timm")
