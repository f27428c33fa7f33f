"""A copy of the code for jobs that wait: what is edited after they were submitted does not change them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import eval_suite
from spark.utils.files import cannot_write
from spark.utils.provenance import VERSION_FILE, code_version

PACKAGES = ("spark", "d2_projects", "eval_suite")


def source_root() -> Path:
    """Return the folder that the packages lie in: a checkout, or site-packages."""
    return Path(eval_suite.__file__).resolve().parent.parent


def snapshot_path(folder: Path, data: Iterable[Path] = ()) -> Path:
    """Return where `take_snapshot` puts a copy of the code as it is now."""
    root = source_root()
    linked = _inside(root, data)
    return folder / f"code-{_digest(root, _files(root, linked), linked)}"


def take_snapshot(folder: Path, data: Iterable[Path] = ()) -> Path:
    """Copy the code into `folder`, by the hash of its content, unless it is there; return that folder.

    Of a checkout, all files are copied that git knows or would add; what it ignores at the top (data, runs) is linked,
    so that relative paths mean the same in the copy. Of an installed package, the packages alone are copied.

    Args:
        folder: to copy into.
        data: paths that are no code: if they lie in the checkout, they are linked, whether git ignores them or not.
    """
    root = source_root()
    linked = _inside(root, data)
    files = _files(root, linked)
    destination = folder / f"code-{_digest(root, files, linked)}"
    if destination.is_dir():
        return destination
    making = folder / f".{destination.name}.{os.getpid()}"
    try:
        for file in files:
            (making / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, making / file)
        (making / VERSION_FILE).write_text(code_version(), encoding="utf-8")
        if _is_checkout(root):
            _link_others(root, making, linked)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise cannot_write(making, error) from None
    try:
        making.rename(destination)
    except OSError:  # somebody else was faster
        shutil.rmtree(making)
    return destination


def _inside(root: Path, paths: Iterable[Path]) -> list[str]:
    """Return the paths that lie in the checkout, relative to it."""
    absolute = (Path(os.path.abspath(path)) for path in paths)
    return sorted({str(path.relative_to(root)) for path in absolute if path != root and path.is_relative_to(root)})


def _files(root: Path, but: Sequence[str]) -> list[str]:
    if not _is_checkout(root):
        return sorted(str(path.relative_to(root)) for package in PACKAGES
                      for path in (root / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=True).stdout
    left_out = {*but}, tuple(f"{name}/" for name in but)
    names = (name for name in listed.split("\0") if name not in left_out[0] and not name.startswith(left_out[1]))
    return sorted(name for name in names if name and (root / name).is_file())


def _digest(root: Path, files: Iterable[str], linked: Iterable[str]) -> str:
    digest = hashlib.sha256("\0".join(linked).encode())
    for file in files:
        digest.update(file.encode() + b"\0" + (root / file).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _link_others(root: Path, copy: Path, linked: Iterable[str]) -> None:
    for entry in root.iterdir():
        if not entry.name.startswith(".") and not (copy / entry.name).exists():
            (copy / entry.name).symlink_to(entry)
    for name in linked:
        if not (copy / name).exists() and (root / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(root / name)


def _is_checkout(root: Path) -> bool:
    return (root / ".git").exists()
