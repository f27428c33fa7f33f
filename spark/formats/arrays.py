"""Pickles of numpy arrays, as Detectron2's weight files are, read without running code from them.

Nothing of numpy is called from a pickle: an array that it describes is built here, once its bytes are seen to fill it.
"""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spark.errors import UserError
from spark.runs.checkpoint import NOT_DAMAGE, DamagedCheckpoint

_MODULES = ("collections", "_codecs", "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
            "numpy.core.numeric", "numpy._core.numeric")  # fmt: skip
_PLAIN = re.compile(r"[<>=|]?([fiu][1248]|b1|bool)")  # numbers and truth values: no objects, no records, no text
_ARRAY = object()  # what `numpy.ndarray` is here; nothing can be done with it


class _ForbiddenError(Exception):
    """The pickle names something other than arrays."""


class _Type:
    """A plain dtype; the byte order comes after its name."""

    def __init__(self, text: Any) -> None:
        if not isinstance(text, str) or not _PLAIN.fullmatch(text):
            raise ValueError(f"an array of type {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or (subtype, names, fields) != (None, None, None):
            raise ValueError("an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array, once it is filled."""

    def __init__(self, reader: _ArrayUnpickler) -> None:
        self._reader, self.content = reader, np.empty(0, np.float32)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.fill(data, kind, shape, "F" if fortran else "C")

    def fill(self, data: Any, kind: Any, shape: Any, order: str) -> None:
        """Take bytes, a `_Type` and a shape, if they are for one another."""
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2 has one type for both
        if not isinstance(kind, _Type) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array without type or shape")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise ValueError("an array that its bytes do not fill")
        self._reader.count(len(data))
        self.content = np.frombuffer(data, kind.dtype).reshape(tuple(shape), order="F" if order == "F" else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Python 2 wrote bytes where we expect text; latin1 is what numpy asks for."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self._bytes_left = size

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "OrderedDict": collections.OrderedDict, "ndarray": _ARRAY, "dtype": self._dtype, "encode": self._encode,
            "_reconstruct": self._reconstruct, "_frombuffer": self._frombuffer, "scalar": self._scalar,
        }  # fmt: skip
        if module not in _MODULES or name not in known:
            raise _ForbiddenError(f"{module}.{name}")
        return known[name]

    def count(self, size: int) -> None:
        """Refuse arrays that together are larger than the file, as of the same bytes a million times."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError("arrays larger than the file")

    def _dtype(self, text: Any, *_: Any) -> _Type:
        return _Type(text)

    def _encode(self, text: str, encoding: str) -> bytes:
        """How pickles that Python 2 can read carry bytes."""
        if encoding != "latin1":
            raise ValueError(f"bytes in {encoding!r}")
        return text.encode("latin1")

    def _reconstruct(self, kind: Any, *_: Any) -> _Array:
        if kind is not _ARRAY:
            raise ValueError("an array of another class")
        return _Array(self)

    def _frombuffer(self, data: Any, kind: Any, shape: Any, order: str) -> _Array:
        array = _Array(self)
        array.fill(data, kind, shape, order)
        return array

    def _scalar(self, kind: Any, data: Any) -> _Array:
        return self._frombuffer(data, kind, (), "C")


def load_arrays(path: Path) -> Any:
    """Read a pickle of plain values and numpy arrays; each array becomes a tensor.

    Raises:
        UserError: missing, truncated, or holding anything else.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            for opcode, argument, _ in pickletools.genops(file):  # or a number in it makes room for a million objects
                if opcode.name.endswith("PUT") and int(argument or 0) > size:
                    raise ValueError("more objects than bytes")
            file.seek(0)
            content = _ArrayUnpickler(file, size).load()
        return _as_tensors(content, {})
    except _ForbiddenError as error:
        raise UserError(f"'{path}' holds a {error}, not arrays alone; it is not loaded") from None
    except (Exception, MemoryError) as error:  # a damaged file makes its reader stumble in any way
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}") from None
        raise DamagedCheckpoint(f"'{path}' is truncated or no pickle of arrays") from None


def _as_tensors(value: Any, done: dict[int, Any]) -> Any:
    """Return arrays as tensors; what stands at several places is one thing there, too."""
    if isinstance(value, _Array):
        if id(value) not in done:  # a copy in this machine's byte order, which torch may own
            kind = value.content.dtype.newbyteorder("=")
            done[id(value)] = torch.from_numpy(np.array(value.content, dtype=kind, order="C"))
        found: Tensor = done[id(value)]
        return found
    if isinstance(value, dict):
        if id(value) not in done:
            done[id(value)] = {key: _as_tensors(item, done) for key, item in value.items()}
        return done[id(value)]
    return value
