"""The demo: a little COCO set, made on the spot where it is not there, and the recipe for it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from spark.errors import UserError

DEMO = "demo"  # what `data=` calls it
FOLDER = Path("data/demo")  # where `make demo` puts it too
RECIPE = Path(__file__).parents[1] / "mask_rcnn" / "mask_rcnn_r18_demo.py"
MAKER = Path(__file__).parents[2] / "tools" / "make_demo_data.py"


def demo_detection() -> Path:
    """Return the folder of the demo's detection data, made first if need be.

    Raises:
        UserError: it cannot be made here.
    """
    if not (FOLDER / "detection").is_dir():
        _make()
    return FOLDER / "detection"


def recipe_and_overrides(arguments: list[str]) -> tuple[str, list[str]]:
    """Take the arguments of a detection run apart; with data=demo the recipe may be left out.

    Raises:
        UserError: there is no recipe.
    """
    first, *rest = arguments
    if "=" not in first:
        return first, rest
    if f"data={DEMO}" in arguments or f"data.root={DEMO}" in arguments:
        return str(RECIPE), arguments
    raise UserError(f"name a recipe before '{first}': a file such as {RECIPE.with_name('mask_rcnn_r50_fpn.py')}; only "
                    f"with data={DEMO} it may be left out")


def _make() -> None:
    missing = [package for module, package in (("skimage", "scikit-image"), ("sklearn", "scikit-learn"))
               if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"data=demo is made from photos inside {' and '.join(missing)}: "
                        f"pip install {' '.join(missing)}")
    if not MAKER.is_file():
        raise UserError(f"data=demo needs a checkout of the project: '{MAKER}' does not exist")
    made = subprocess.run([sys.executable, str(MAKER), str(FOLDER)], capture_output=True, text=True, check=False)
    if made.returncode:
        said = made.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"data=demo could not be made: {said[-1].removeprefix('error: ')}")
