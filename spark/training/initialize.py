"""Warm starts: weights from elsewhere for a run that begins. (Going on with a run is another matter: resume.)"""

from __future__ import annotations

import torch

from spark.errors import UserError
from spark.formats.reader import bare, optional
from spark.formats.weights import read_whole_weights
from spark.methods.base import Method

ENOUGH = 0.9  # share of the tensors; a person who wants less has to say so
NAMED = 3  # tensors in a message


def initialize(model: Method, source: str, in_chans: int, allow_partial: bool = False) -> str:
    """Copy what matches, by name and shape, into the model; return a line that says how much that was.

    Args:
        model: it is changed in place.
        source: what `init=` says (see `spark.formats.weights`).
        in_chans: of the images; timm adapts its own weights to it.
        allow_partial: be content with less than nine tenths of the tensors.

    Raises:
        UserError: nothing or too little matches, or there is nothing to read.
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
