#!/usr/bin/env python
"""Install Detectron2, unless it is importable already.

    python tools/install_detectron2.py                # a pinned wheel from the package index
    python tools/install_detectron2.py --from-source  # upstream with its C++ operators (git, compiler)

Detectron2 is not on the package index by its own name. `sal-detectron2` is upstream commit a59f0563; its
wheel is tagged for CPython 3.10 because of one compiled extension (deformable and rotated operators), which
nothing in this project needs: ROIAlign and NMS come from torchvision. So it is unpacked as it is, after its
checksum was compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from spark.errors import UserError, exits_cleanly
from spark.utils.files import sha256

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
SOURCE = "git+https://github.com/facebookresearch/detectron2.git"
# Accept the wheel's tag on any Python; pip demands --only-binary with these.
ANY_PYTHON = ["--no-deps", "--only-binary=:all:", "--python-version=3.10", "--implementation=cp",
              "--platform=any"]


def installed_at(target: Path | None) -> Path | None:
    """Return the folder of the importable detectron2 (or of the one in `target`), or None."""
    if target is not None:
        folder = target / "detectron2"
        return folder if (folder / "__init__.py").is_file() else None
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None


def install_wheel(target: Path) -> None:
    """Download the pinned wheel, compare its checksum, unpack it into `target`.

    Raises:
        UserError: pip failed, or the file is not the one that was reviewed.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip("download", *ANY_PYTHON, "--dest", folder, REQUIREMENT)
        wheel = next(Path(folder).glob("*.whl"))
        check(wheel)
        pip("install", *ANY_PYTHON, "--no-index", "--upgrade", "--target", str(target), str(wheel))


def check(wheel: Path) -> None:
    """Raise UserError unless the wheel is byte for byte the one that was reviewed."""
    found = sha256(wheel)
    if found != SHA256:
        raise UserError(f"{wheel.name}: sha256 is {found}, expected {SHA256}; nothing was installed")


def pip(*arguments: str) -> None:
    """Run pip of this Python; its last line of complaint becomes the error.

    Raises:
        UserError: pip returned non-zero.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        complaints = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = (complaints or result.stderr.splitlines() or ["no message"])[-1]
        raise UserError(f"pip {arguments[0]} failed: {reason.removeprefix('ERROR: ')}")


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and install what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--from-source", action="store_true", help="build upstream from its git repository")
    parser.add_argument("--target", type=Path, help="another folder than this Python's site-packages")
    options = parser.parse_args(arguments)
    if options.from_source and options.target:
        raise UserError("--from-source installs into this Python: leave out --target")
    present = installed_at(options.target)
    if present is not None:
        print(f"detectron2 is installed already in {present}; left as it is")
    elif options.from_source:
        pip("install", "--no-build-isolation", SOURCE)
        print(f"detectron2 was built from {SOURCE}")
    else:
        target = options.target or Path(sysconfig.get_paths()["purelib"])
        install_wheel(target)
        print(f"{REQUIREMENT} was installed into {target}")


if __name__ == "__main__":
    sys.exit(main())
