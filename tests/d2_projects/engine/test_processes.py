"""Two processes on two slices of every batch are one training, and evaluate as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tiny_coco import RECIPE, TINY

from d2_projects.engine.run import run
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record

SCRIPT = str(ROOT / "d2_projects" / "train_net.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT]


def start(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_train_and_evaluate_as_one(coco: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"data.root={coco}", "train.precise_bn_iter=0"]
    done = start(*TORCHRUN, RECIPE, *overrides, f"out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("result.json") == done.stdout.count("recipe   ") == 1  # the first speaks for both
    record = load_record(tmp_path / "two" / "result.json")
    assert "2 processes" in record.hardware
    assert [entry["step"] for entry in read_metrics(tmp_path / "two") if "loss" in entry] == [1, 2]

    # The checkpoint of two processes, evaluated by one.
    evaluated = run(RECIPE, [*overrides, f"out={tmp_path / 'two'}", "eval_only=true"])
    assert evaluated is not None
    alone = json.loads(evaluated.read_text())["metrics"]
    assert alone == {name: metric.value for name, metric in record.metrics.items()}
    for task in ("bbox", "segm"):
        name = f"detections_{task}.json"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "two" / "evaluation" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("command", [TORCHRUN, [sys.executable, SCRIPT, "--num-gpus", "2"]])
def test_what_is_wrong_is_said_once_and_ends_all(command: list[str], coco: Path, tmp_path: Path) -> None:
    for override, message in (("train.max_itr=3", "unknown key 'train.max_itr'"),
                              ("dataloader.train.total_batch_size=3", "cannot be shared equally by 2 processes")):
        done = start(*command, RECIPE, *TINY, f"data.root={coco}", f"out={tmp_path / 'run'}", override)
        assert done.returncode != 0
        assert done.stderr.count("error: ") == 1
        assert message in done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_launch_does_as_torchrun(coco: Path, tmp_path: Path) -> None:
    for name, command in (("torchrun", TORCHRUN), ("launch", [sys.executable, SCRIPT, "--num-gpus", "2"])):
        done = start(*command, RECIPE, *TINY, f"data.root={coco}", f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "torchrun") == read_metrics(tmp_path / "launch")
