"""Warm starts: initialize a new run from existing weights. (To continue a run, see resume.)"""

from __future__ import annotations

import torch

from spark.errors import UserError
from spark.formats.reader import bare, optional
from spark.formats.weights import read_whole_weights
from spark.methods.base import Method

ENOUGH = 0.9  # minimum fraction of matching tensors, unless allow_partial is set
NAMED = 3  # tensors named in a message


def initialize(model: Method, source: str, in_chans: int, allow_partial: bool = False) -> str:
    """Copy the tensors that match by name and shape into the model; return a line that reports how many did.

    Args:
        model: changed in place.
        source: value of `init=` (see `spark.formats.weights`).
        in_chans: number of image channels; timm adapts its own weights to it.
        allow_partial: accept fewer than nine tenths of the tensors.

    Raises:
        UserError: no or too few tensors match, or the weights cannot be read.
    """
    weights = read_whole_weights(source, in_chans)
    if weights.state is None:
        return ""
    own = model.state_dict() if weights.whole else model.encoder_state()  # both share the parameters' memory
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
