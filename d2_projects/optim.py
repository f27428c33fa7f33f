"""Layer-wise learning-rate decay for Detectron2's ResNets."""

from __future__ import annotations

import re
from collections.abc import Callable

RES4_BLOCKS = {18: 2, 34: 6, 50: 6, 101: 23, 152: 36}
BLOCKS_PER_LAYER = 3  # of res4, the long stage


def resnet_layer_decay(depth: int, decay: float) -> Callable[[str], float]:
    """Return the function parameter name -> learning-rate factor for a ResNet of this depth.

    Counted from the input, the layers are the stem, res2, res3, every three blocks of res4, res5; everything
    after the backbone has factor 1, and each layer before that has `decay` times the factor of the next. The
    factors equal SparK's for ResNet-50 and 101. For deeper networks the original counts too few layers, so
    that its last blocks learn faster than the heads; here the count follows the depth, and every factor is
    within [0, 1].

    It is meant for `lr_factor_func` of `detectron2.solver.build.get_default_optimizer_params`.

    Raises:
        ValueError: the depth is not a ResNet's, or the decay is outside [0, 1].
    """
    if depth not in RES4_BLOCKS:
        raise ValueError(f"depth {depth} is not one of {sorted(RES4_BLOCKS)}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay {decay} is outside [0, 1]")
    res5 = 3 + -(-RES4_BLOCKS[depth] // BLOCKS_PER_LAYER)

    def layer_of(name: str) -> int:
        if ".stem." in f".{name}":
            return 0
        found = re.search(r"bottom_up\.res([2-5])\.(\d+)\.", name)
        if found is None:
            return res5 + 1
        stage, block = int(found[1]), int(found[2])
        return {2: 1, 3: 2, 4: 3 + block // BLOCKS_PER_LAYER, 5: res5}[stage]

    return lambda name: decay ** (res5 + 1 - layer_of(name))
