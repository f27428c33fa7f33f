"""Checkpoints that others wrote: read as far as tensors go, or called what they are."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spark.errors import UserError
from spark.runs.checkpoint import DamagedCheckpoint, HoldsObjects, load_file

# Whose objects stand beside tensors in checkpoints of training scripts: settings and logs. None of it is called: what
# is read instead is a `_LeftOut`.
LEFT_OUT = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|collections\.(deque|defaultdict)|datetime\.\w+|"
    r"builtins\.(set|frozenset|slice|complex|getattr|dict|list|int|float|str|bool)|enum\.\w+|typing\.\w+|"
    r"(numpy|omegaconf|antlr4|mmengine|mmcv|mmcls|mmpretrain|mmdet|mmseg|addict|easydict|yacs|fvcore|timm|"
    r"detectron2|lightning|pytorch_lightning|ml_collections|hydra)(\.\w+)+"
)
KINDS = (
    (b"<", "a web page, as failed downloads are"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes; save the weights with torch.save"),
    (b"\x93NUMPY", "a single NumPy array; save a state dict with torch.save"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"\x08\x00\x00\x00\x00", "an ONNX model; save the network's state_dict() with torch.save"),
)


class _LeftOut:
    """What stands for an object of others, of which nothing is wanted."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _a_list(*_: Any) -> list[Any]:
    """What stands for a container that is filled item by item."""
    return []


def _a_dict(*_: Any) -> dict[Any, Any]:
    return {}


class Foreign(NamedTuple):
    """What was read, and a line for each thing that was left out."""

    content: Any
    notes: tuple[str, ...] = ()


def load_foreign(path: Path) -> Foreign:
    """Read a `torch.save` file; objects of training scripts beside its tensors are left out.

    Raises:
        UserError: missing or damaged, something else, or holding objects of other kinds, which are named.
    """
    try:
        return Foreign(load_file(path))
    except HoldsObjects as error:
        return _without_objects(path, error)
    except DamagedCheckpoint:
        if kind := _kind(path):
            raise UserError(f"'{path}' is {kind}") from None
        raise


def _without_objects(path: Path, error: HoldsObjects) -> Foreign:
    if kind := _kind(path):
        raise UserError(f"'{path}' is {kind}") from None
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of before PyTorch 1.6, or a PyTorch of before 2.6
        raise error from None
    if unknown := sorted(name for name in names if not LEFT_OUT.fullmatch(name)):
        raise UserError(f"checkpoint '{path}' holds objects other than tensors ({', '.join(unknown[:3])}); it is not "
                        "loaded: save its state dict alone, with torch.save(checkpoint['state_dict'], FILE)") from None
    filled: dict[str, Any] = {"collections.deque": _a_list, "collections.defaultdict": _a_dict}
    stand_ins: list[Any] = [(filled.get(name, _LeftOut), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = load_file(path)
    except DamagedCheckpoint:  # of objects that are more than their state
        raise error from None
    if not isinstance(content, Mapping):
        return Foreign(content)
    left = [str(key) for key, value in content.items() if _holds_objects(value)]
    kept = {key: value for key, value in content.items() if str(key) not in left}
    note = f"left out {', '.join(left)}: holds {', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''}"
    return Foreign(kept, (note,) if left else ())


def _holds_objects(value: Any, depth: int = 8) -> bool:
    if isinstance(value, _LeftOut) or depth == 0:
        return True
    inner: Iterator[Any] = iter(())
    if isinstance(value, Mapping):
        inner = iter([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set):
        inner = iter(value)
    return any(_holds_objects(item, depth - 1) for item in inner)


def _kind(path: Path) -> str | None:
    """Return what a file is, if it is something that people take for a checkpoint."""
    if zipfile.is_zipfile(path):
        return _kind_of_zip(path)
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return f"a safetensors file: name it {path.stem}.safetensors"
    if start[:1] == b"\x80" and b"numpy" in start:
        return f"a pickle of arrays: name it {path.stem}.pkl"
    return next((kind for magic, kind in KINDS if start.lstrip().startswith(magic)), None)


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "a TorchScript program: save the network's state_dict() with torch.save instead"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz): save its arrays as a state dict of tensors, with torch.save"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive, and no checkpoint: unpack it"
    return None
