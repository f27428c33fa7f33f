"""Pickles of numpy arrays, as Detectron2's weight files are, read without running code from them."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spark.errors import UserError
from spark.runs.checkpoint import NOT_DAMAGE, DamagedCheckpoint

# What pickled arrays, and dictionaries of them, call by name; numpy itself tells which functions these are.
_ALLOWED: dict[str, Any] = {
    "OrderedDict": collections.OrderedDict,
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
    "encode": lambda text, encoding: text.encode(encoding),  # how pickles that Python 2 can read carry bytes
}
_MODULES = ("collections", "_codecs", "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
            "numpy.core.numeric", "numpy._core.numeric")  # fmt: skip


class _ForbiddenError(Exception):
    """The pickle names something other than arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module not in _MODULES or name not in _ALLOWED:
            raise _ForbiddenError(f"{module}.{name}")
        return _ALLOWED[name]


def load_arrays(path: Path) -> Any:
    """Read a pickle of plain values and numpy arrays; each array becomes a tensor.

    Raises:
        UserError: missing, truncated, or holding anything else.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        with open(path, "rb") as file:
            # Python 2 wrote bytes where we expect text; latin1 is what numpy asks for.
            content = _ArrayUnpickler(file, encoding="latin1").load()
        return _as_tensors(content)
    except _ForbiddenError as error:
        raise UserError(f"'{path}' holds a {error}, not arrays alone; it is not loaded") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its reader stumble in any way
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}") from None
        raise DamagedCheckpoint(f"'{path}' is truncated or no pickle of arrays") from None


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        # A copy in this machine's byte order, which torch may own.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    return value
