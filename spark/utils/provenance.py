"""Which code and which machine produced a number."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark.utils.printable import counted
from spark.utils.version import __version__

if TYPE_CHECKING:  # who only asks for versions need not wait for it
    import torch

VERSION_FILE = "CODE_VERSION"
"""Beside the packages of a copy of the code, which has no history of its own: what it is a copy of."""


def code_version() -> str:
    """Return the package version, with the git commit (and '+dirty') when run from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if (root / VERSION_FILE).is_file():
        return (root / VERSION_FILE).read_text(encoding="utf-8").strip()
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}-{described}"


def environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about numbers."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "numpy", "sal-detectron2", "detectron2", "pycocotools",
                    "faster-coco-eval"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def hardware(device: torch.device, processes: int | None = None) -> str:
    """Return the accelerators' number and name, or the processor and the number of threads used.

    Args:
        device: that of this process.
        processes: that computed together, each on a device like this; by default as many as there are GPUs.
    """
    import torch

    if device.type == "cuda":
        return f"{processes or torch.cuda.device_count()}x {torch.cuda.get_device_name(device)}"
    shared = f"{processes} processes of " if processes and processes > 1 else ""
    return f"{_processor()}, {shared}{counted(torch.get_num_threads(), 'thread')}"


def gpus_in(hardware: str) -> int:
    """Return the number of GPUs in what `hardware` returned; 0 if it was a processor."""
    count, times, _ = hardware.partition("x ")
    return int(count) if times and count.isdigit() else 0


def content_hash(value: Any) -> str:
    """Return a short hash of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
