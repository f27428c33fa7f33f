"""Convert a checkpoint to another library's format: the same as `spark convert`.

    python tools/convert_checkpoint.py SRC DST --to timm|torchvision|detectron2|mmpretrain|…
"""

from __future__ import annotations

import sys

from spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
