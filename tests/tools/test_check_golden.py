"""The golden check passes on the original's numbers, and fails on any others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

GOLDEN = ROOT / "tests" / "golden"


def check(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_golden.py"), str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("resnet18_128", "compact"),
        ("resnet18_128", "masked"),
        ("convnext_tiny_96", "compact"),
        ("convnext_tiny_96", "masked"),
        ("resnet50_96", "compact"),
        pytest.param("resnet50_96", "masked", marks=pytest.mark.slow),
        ("fcmae/fcmae_atto_96", "compact"),
        pytest.param("fcmae/fcmae_atto_96", "masked", marks=pytest.mark.slow),
        pytest.param("fcmae/fcmae_tiny_64", "compact", marks=pytest.mark.slow),
        pytest.param("fcmae/fcmae_tiny_64", "masked", marks=pytest.mark.slow),
        ("um/um_vit_mini_96", "auto"),
        ("um/um_swin_pixel_nosm_128_w4", "auto"),
        ("um/mae_vit_mini_96", "auto"),
        ("um/simmim_swin_tiny_128_w8", "auto"),
        ("um/simmim_official_swin_tiny_128_w4", "auto"),
        pytest.param("um/um_swin_tiny_128_w4", "auto", marks=pytest.mark.slow),
        pytest.param("um/um_pvt_small_128", "auto", marks=pytest.mark.slow),
        pytest.param("um/simmim_pvt_small_128", "auto", marks=pytest.mark.slow),
    ],
)
def test_our_numbers_are_the_originals(name: str, engine: str) -> None:
    result = check(GOLDEN / f"{name}.json", "--engine", engine)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"engine {engine}" in result.stdout
    assert "all within tolerance" in result.stdout


def test_wrong_numbers_fail_and_are_named(tmp_path: Path) -> None:
    case = json.loads((GOLDEN / "resnet18_128.json").read_text())
    expected = case["expected"]
    expected["loss"] *= 1 + 1e-5
    expected["grad"][next(name for name in expected["grad"] if "layer3" in name)]["l2"] *= 1.5
    changed = tmp_path / "renamed.json"
    changed.write_text(json.dumps(case))
    result = check(changed)
    assert result.returncode == 1, result.stdout + result.stderr
    failed = [line.split()[0] for line in result.stdout.splitlines() if " FAILED" in line and line.startswith("  ")]
    assert failed == ["loss", "gradients"]


def test_in_float32_fcmae_is_right_to_rounding_and_spark_is_left_out() -> None:
    result = check(GOLDEN / "fcmae" / "fcmae_atto_96.json", str(GOLDEN / "resnet18_128.json"), "--float32")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resnet18_128.json: holds no model's numbers for float32, left out" in result.stdout
    assert "GRN image: gradients" in result.stdout


def test_a_case_is_known_by_its_content_and_wrong_numbers_of_it_fail(tmp_path: Path) -> None:
    case = json.loads((GOLDEN / "fcmae" / "fcmae_atto_96.json").read_text())
    case["expected"]["pred"]["l2"] *= 1 + 1e-6
    case["expected"]["adamw"]["decay"].remove("mask_token")
    changed = tmp_path / "resnet18.json"
    changed.write_text(json.dumps(case))
    result = check(changed)
    assert result.returncode == 1, result.stdout + result.stderr
    failed = [line for line in result.stdout.splitlines() if " FAILED" in line and line.startswith("  ")]
    assert [line.split("  ")[1] for line in failed] == ["GRN batch: prediction", "AdamW decays what it should"]


@pytest.mark.parametrize("name", ["detectron2_resnet_keys.json", "no_such_file.json"])
def test_a_file_that_is_no_case_is_one_line(name: str) -> None:
    result = check(GOLDEN / name)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
