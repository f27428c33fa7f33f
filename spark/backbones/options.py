"""Which options of a network a recipe or an export may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark.errors import UserError

FIXED_OPTIONS = ("num_classes", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
                 "pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "checkpoint_path", "cache_dir",
                 "pruned", "feature_cls")  # what says where weights come from among them: `init` does


def require_own_options(options: Mapping[str, Any]) -> None:
    """Raise UserError for options that say what else decides, or where weights come from."""
    for option, value in options.items():
        if option in FIXED_OPTIONS:
            raise UserError(f"model.options must not have '{option}': that follows from what the network is built for")
        if "://" in str(value):
            raise UserError(f"model.options must not name a URL ({option}={value!r})")
