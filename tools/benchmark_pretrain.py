"""Time a training step: python tools/benchmark_pretrain.py MODEL [options], the same as `spark bench MODEL`."""

from __future__ import annotations

import sys

from spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
