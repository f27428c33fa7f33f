"""Pre-training in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT


def torchrun(recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    process = start_torchrun(recipe, *overrides)
    told = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, *told)


def start_torchrun(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    code = "import sys; from spark.cli import main; sys.exit(main())"
    script = recipe.with_name("spark_main.py")
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    recipe.write_text("{}\n")
    command += ["pretrain", str(recipe), *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
