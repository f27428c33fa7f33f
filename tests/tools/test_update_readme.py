"""What the README shows of a run is that run's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from spark.errors import UserError
from spark.runs.metrics import MetricsLog

TOOL = ROOT / "tools" / "update_readme.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("update_readme", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_a_run_on_cifar_is_shown_with_its_probes(tool: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with MetricsLog(run) as log:
        log.write(0, epoch=0.0, knn=22.94, linear=31.3)
        log.write(10, epoch=0.5, loss=0.9)
        log.write(20, epoch=1.0, loss=0.61234, knn=30.2, linear=31.7, effective_rank=20.04)
    with pytest.raises(UserError, match="holds no finished pre-training"):
        tool.cifar_section(run)
    (run / "visualize").mkdir()
    for name in ("encoder.json", "curve.png", "visualize/reconstruct.png"):
        (run / name).write_bytes(name.encode())
    section = tool.cifar_section(run)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["epoch", "loss", "k-NN in %", "linear probe in %", "effective rank"]
    assert rows[2:] == [["0", "", "22.9", "31.3", ""], ["1", "0.612", "30.2", "31.7", "20.0"]]
    assert (tool.RESULTS / "cifar10_curve.png").read_bytes() == b"curve.png"
    assert "(tools/demo_results/cifar10_reconstruction.png)" in section


@pytest.mark.parametrize("folder", ["pretrain", "pretrain-spark-resnet18-s0-0123abcd"])
def test_the_demo_is_shown_wherever_it_was_pre_trained(tool: Any, tmp_path: Path, folder: str) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="holds no finished demo"):
        tool.demo_section(runs)
    for name in ("report/table.md", f"{folder}/reconstructions/epoch_00009.png",
                 f"{folder}/reconstructions/epoch_00010.png"):
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        (runs / name).write_text(name)
    assert tool.demo_section(runs).startswith("report/table.md\n")
    assert (tool.RESULTS / "reconstruction.png").read_text().endswith("epoch_00010.png")


def test_a_study_is_shown_by_its_table(tool: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished study"):
        tool.study_section(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "table.md").write_text("| a table |\n")
    assert tool.study_section(tmp_path) == "| a table |"
    assert (tool.RESULTS / "cifar10_study.md").read_text() == "| a table |\n"


def test_only_what_is_between_the_marks_changes(tool: Any) -> None:
    readme = "a\n<!-- demo: written by tools/update_readme.py -->\nold\n<!-- end of demo -->\nb\n"
    assert tool.with_section(readme, "demo", "new") == readme.replace("old", "new")
    with pytest.raises(UserError, match="has lost its marks"):
        tool.with_section(readme, "coverage", "new")
