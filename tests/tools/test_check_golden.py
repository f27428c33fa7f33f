"""The golden check passes on the original's numbers, and fails on any others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_golden.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", ["resnet18_128", "convnext_tiny_96", "resnet50_96"])
def test_our_numbers_are_the_originals(name: str) -> None:
    result = check(GOLDEN / f"{name}.json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all within tolerance" in result.stdout


def change_loss(expected: dict[str, Any]) -> None:
    expected["loss"] *= 1 + 1e-3


def change_gradient(expected: dict[str, Any]) -> None:
    name = next(name for name in expected["grad"] if "layer3" in name)
    expected["grad"][name]["l2"] *= 1.5


@pytest.mark.parametrize(("change", "quantity"), [(change_loss, "loss"), (change_gradient, "gradients")])
def test_a_wrong_number_fails(change: Callable[[dict[str, Any]], None], quantity: str, tmp_path: Path) -> None:
    case = json.loads((GOLDEN / "resnet18_128.json").read_text())
    change(case["expected"])
    changed = tmp_path / "renamed.json"
    changed.write_text(json.dumps(case))
    result = check(changed)
    assert result.returncode == 1, result.stdout + result.stderr
    failed = [line.split()[0] for line in result.stdout.splitlines() if " FAILED" in line and line.startswith("  ")]
    assert failed == [quantity]


@pytest.mark.parametrize("name", ["detectron2_resnet_keys.json", "no_such_file.json"])
def test_a_file_that_is_no_case_is_one_line(name: str) -> None:
    result = check(GOLDEN / name)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
