"""Every command of the README runs: make's as a dry run, the others for real with the work made small."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from eval_suite.task_registry import tasks_table
from spark.checks.coverage import coverage_line, read_table

# Appended to a command of the README, by its verb, so that it ends in seconds.
SMALLER = {
    "spark pretrain": "data.input_size=[64,64] data.workers=0 decoder.width=32 train.batch=4 train.epochs=1 "
    "train.warmup_epochs=0 model.drop_path=0",
    "spark bench": "--batch 2 --input-size 96 --decoder-width 32 --rounds 1 --device cpu",
    "spark-eval finetune": "train.epochs=1 train.warmup_epochs=0 data.workers=0",
    "spark-eval detect": "train.max_iter=2 train.precise_bn_iter=1",
}


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands() -> list[str]:
    """Return the README's shell commands, in order."""
    lines = "".join(blocks("bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README finds it: recipes, the demo's data and encoder, and a folder of photos."""
    place = tmp_path_factory.mktemp("readme")
    for folder in ("configs", "d2_projects", "tools", "tests/golden"):
        shutil.copytree(ROOT / folder, place / folder)
    run(place, f"{sys.executable} tools/make_demo_data.py data/demo")
    rng = np.random.default_rng(0)
    (place / "photos").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 255, (96, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "photos" / f"{index}.jpg")
    return place


def run(place: Path, command: str) -> str:
    """Run a command and return what it printed; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(shlex.split(command), cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_of_the_readme_run_in_order(place: Path) -> None:
    """Make targets are looked up (their work is this suite, or the slow test below)."""
    ran = []
    for command in commands():
        if command.startswith("make "):
            run(ROOT, f"{command} --dry-run")
            continue
        verb = " ".join(command.split()[:2])
        run(place, f"{command} {SMALLER.get(verb, '')}")
        ran.append(verb)
    assert {"spark pretrain", "spark check", "spark convert", "spark-eval finetune", "spark-eval detect",
            "spark-eval report"} <= set(ran)
    assert (place / "runs/mine/report/report.html").is_file()
    assert (place / "runs/mine/r18.yaml").is_file()


def test_the_python_of_the_readme_runs(place: Path) -> None:
    """The three lines that load an encoder, and a notebook's."""
    for block in blocks("python"):
        code = block.replace("randn(2, 3, 96, 96)", "randn(2, 3, 64, 64)")
        for verb in ("spark pretrain", "spark-eval finetune"):  # so that they end in seconds
            out = f'"out=runs/notebook/{verb.split()[1]}"'
            code = code.replace(out, ", ".join([out, *map(repr, SMALLER[verb].split())]))
        run(place, f"{sys.executable} -c {shlex.quote(code)}")


def test_the_readme_shows_the_table_that_the_demo_wrote() -> None:
    """Nobody typed the numbers."""
    table = (ROOT / "tools/demo_results/table.md").read_text().strip()
    assert table in (ROOT / "README.md").read_text()
    assert (ROOT / "tools/demo_results/reconstruction.png").is_file()


def test_the_readme_shows_the_coverage_of_the_packaged_table() -> None:
    """Nobody typed that line either."""
    assert coverage_line(read_table()) in (ROOT / "README.md").read_text()


def test_the_readme_lists_the_tasks_that_there_are() -> None:
    """A new one is a file, and a run of the tool."""
    assert tasks_table() in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    """The whole main job."""
    for folder in ("configs", "d2_projects", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    run(tmp_path, "spark-eval study run demo --jobs 2")
    assert (tmp_path / "runs/demo/report/report.html").is_file()
    assert len(list((tmp_path / "runs/demo").glob("*/result.json"))) == 4
