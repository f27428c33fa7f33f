"""Compare with reference numbers of original implementations.

    python tools/check_golden.py tests/golden/resnet50_96.json [MORE…] [--engine compact|masked] [--float32]

Each case is loaded through the importer of the original's checkpoints and computed in float64. Printed is the largest
relative error of each quantity (per tensor, relative to its l2 norm); the exit code is non-zero if one exceeds what
its kind of case allows. What kind a case is, its content tells (see the modules of `golden`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import golden.fcmae
import golden.spark
import golden.um
import torch

from spark.errors import UserError, exits_cleanly

KINDS = (golden.spark, golden.fcmae, golden.um)


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Check every file and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--float32", action="store_true", help="compute in float32, with a tolerance of its own")
    options = parser.parse_args(arguments)
    precision = "float32" if options.float32 else "float64"
    contents = {file: read_json(file) for file in options.files}
    kinds = {file: kind_of(case) for file, case in contents.items()}
    cases = [file for file, kind in kinds.items() if kind is not None and precision in kind.TOLERANCES]
    if not cases:
        raise UserError(f"no golden case of a model for {precision} among {', '.join(map(str, options.files))}")
    for file in set(options.files).difference(cases):
        print(f"{file}: holds no model's numbers for {precision}, left out")
    failures = 0
    for file in cases:
        kind = kinds[file]
        print(f"{file}: {kind.title(contents[file])}, engine {options.engine}, {precision}", flush=True)
        errors = kind.errors(contents[file], options.engine, getattr(torch, precision))
        failures += report(errors, kind.TOLERANCES[precision])
    print("all within tolerance" if not failures else f"{failures} quantities FAILED")
    return int(failures > 0)


def kind_of(content: Any) -> Any:
    """Return the module that checks such a case, None if this is no case of a model."""
    return next((kind for kind in KINDS if kind.is_case(content)), None)


def report(errors: dict[str, float], tolerance: float) -> int:
    """Print the error of each quantity of a case and return how many fail."""
    failures = 0
    for quantity, error in errors.items():
        failed = not error <= tolerance
        print(f"  {quantity:<28} {error:.1e}  {f'FAILED (tolerance {tolerance:.0e})' if failed else 'ok'}", flush=True)
        failures += failed
    return failures


def read_json(path: Path) -> Any:
    """Read a file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}") from None


if __name__ == "__main__":
    sys.exit(main())
