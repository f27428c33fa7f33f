"""Converted weights as a file, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from spark.errors import UserError
from spark.utils.files import atomic_path, torch_save

SUFFIXES = (".pth", ".pt", ".safetensors")


def save_tensors(destination: Path, state: Mapping[str, Tensor], content: Mapping[str, Any]) -> list[Path]:
    """Write `content` with torch.save, or the bare state as `.safetensors`, by the destination's suffix.

    Raises:
        UserError: another suffix, or it cannot be written.
    """
    if destination.suffix not in SUFFIXES:
        raise UserError(f"'{destination}': this format is written to a file that ends in {', '.join(SUFFIXES)}")
    with atomic_path(destination) as temporary:
        if destination.suffix == ".safetensors":
            # Copies, as the format has no way to say that two names share their numbers.
            copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                      for name, tensor in state.items()}
            save_file(copies, temporary, metadata={"format": "pt"})
        else:
            torch_save(dict(content), temporary)
    return [destination]
