"""Masked pre-training of vision backbones.

What a notebook needs is here by name; each is imported when it is used, so that importing `spark` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from spark.backbones.pyramid import Pyramid as Pyramid
    from spark.backbones.timm_pyramid import TimmPyramid as TimmPyramid
    from spark.backbones.timm_pyramid import build_pyramid as build_pyramid
    from spark.checks.report import check_model as check_model
    from spark.errors import UserError as UserError
    from spark.formats.encoder import load_encoder as load_encoder
    from spark.methods.load import load_pretrained as load_pretrained
    from spark.methods.registry import read_recipe as read_recipe
    from spark.methods.spark.model import SparK as SparK
    from spark.sparse.blocks import VECTOR as VECTOR
    from spark.sparse.layers import COMPOSITION as COMPOSITION
    from spark.sparse.layers import CONVOLUTION as CONVOLUTION
    from spark.sparse.layers import OVER_IMAGE as OVER_IMAGE
    from spark.sparse.layers import OVER_IMAGE_CHANNELS_LAST as OVER_IMAGE_CHANNELS_LAST
    from spark.sparse.layers import PER_IMAGE as PER_IMAGE
    from spark.sparse.layers import POINTWISE as POINTWISE
    from spark.sparse.layers import POINTWISE_CHANNELS_LAST as POINTWISE_CHANNELS_LAST
    from spark.sparse.layers import ZERO_TO_ZERO as ZERO_TO_ZERO
    from spark.sparse.rule import LayerRule as LayerRule
    from spark.training.run import pretrain as pretrain
    from spark.utils.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "backbones.pyramid": ["Pyramid"],
    "backbones.timm_pyramid": ["TimmPyramid", "build_pyramid"],
    "checks.report": ["check_model"],
    "errors": ["UserError"],
    "formats.encoder": ["load_encoder"],
    "methods.load": ["load_pretrained"],
    "methods.registry": ["read_recipe"],
    "methods.spark.model": ["SparK"],
    "sparse.blocks": ["VECTOR"],
    "sparse.layers": ["COMPOSITION", "CONVOLUTION", "OVER_IMAGE", "OVER_IMAGE_CHANNELS_LAST", "PER_IMAGE", "POINTWISE",
                      "POINTWISE_CHANNELS_LAST", "ZERO_TO_ZERO"],
    "sparse.rule": ["LayerRule"],
    "training.run": ["pretrain"],
    "utils.version": ["__version__"],
})  # fmt: skip
