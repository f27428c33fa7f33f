"""What it takes to live with Detectron2, be it the pinned wheel or upstream built from source. Nothing is patched.

- The wheel comes without Detectron2's C++ operators. Mask R-CNN needs none of them: ROIAlign and NMS are torchvision's,
  and COCO's metrics are pycocotools'.
- Its code was last changed in 2024: newer versions of torch, setuptools and numpy warn about it, and a user can do
  nothing about that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator

from spark.errors import UserError

PROVOKED = (
    "pkg_resources is deprecated",  # setuptools, of model_zoo
    "torch.meshgrid",  # torch, of the anchor generator: an argument that will be required
    "`torch.jit.script` is deprecated",  # torch, of losses and box regression
    "`broadcast_buffers` is deprecated",  # torch 2.14, of DDP: what replaces it is not in older versions
    "The given NumPy array is not writable",  # torch, of data sets that are shared by workers
)
FX_LOGGER = "torch.fx._symbolic_trace"  # says "is_fx_tracing will return true" by logging, not by a warning


def require_detectron2() -> None:
    """Make sure that Detectron2 is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise UserError("Detectron2 is not installed: run python tools/install_detectron2.py")


@contextlib.contextmanager
def quiet_detectron2() -> Iterator[None]:
    """Keep what Detectron2's own code provokes off the terminal while the body runs."""
    logger = logging.getLogger(FX_LOGGER)
    level = logger.level
    with warnings.catch_warnings():
        for message in PROVOKED:
            warnings.filterwarnings("ignore", message)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
