"""Train and evaluate a detector:

    python d2_projects/train_net.py RECIPE [key=value …] [--num-gpus N]
    torchrun --nproc-per-node N d2_projects/train_net.py RECIPE [key=value …]

It is `spark-eval detect` with the same arguments, under the name that Detectron2's projects give it. That command is
looked up by its name: no module here imports the suite.
"""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module("eval_suite.cli").main(["detect", *sys.argv[1:]]))
