"""The benchmark's variants compute the same, its counts are right, and its report says what was measured."""

import json
from pathlib import Path

import pytest
import torch

from spark.benchmark.report import markdown, ratio_to, save
from spark.benchmark.step import PARTS, TrainingStep, Workload, benchmark, count_flops, kept_bytes
from spark.cli import main

WORKLOAD = Workload("resnet18", batch=2, input_size=(64, 96), decoder_width=32, device="cpu")


def test_variants_compute_the_same() -> None:
    first = TrainingStep(WORKLOAD, WORKLOAD.variants("float32")[0], None)
    state = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    others = WORKLOAD.variants("float32")[1:]
    steps = [first, *(TrainingStep(WORKLOAD, variant, state) for variant in others)]
    losses = [torch.stack([step.run(lambda part, function: function()) for _ in range(3)]) for step in steps]
    for step, loss in zip(steps[1:], losses[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=2e-4, atol=0, msg=step.variant.label)
    assert losses[0][2] != losses[0][0]  # the optimizer does something


def test_flops_of_a_part_are_those_of_its_convolutions() -> None:
    variants = WORKLOAD.variants("float32")
    counts = {variant.label: count_flops(TrainingStep(WORKLOAD, variant, None)) for variant in variants}
    dense, compact = counts["original"], counts["compact"]
    assert set(compact) == set(PARTS)
    # 6 patches, 2 of them visible; the whole map's multiplications at 64 x 96, from timm's published 1.8 G at 224.
    assert dense["encoder forward"] == pytest.approx(2 * 2 * 1.82e9 * (64 * 96) / 224**2, rel=0.02)
    assert compact["encoder forward"] == pytest.approx(dense["encoder forward"] * 2 / 6, rel=0.02)
    # Twice the forward's, less the gradient of the images, which nobody wants.
    stem = 2 * 2 * 64 * 3 * 7 * 7 * 32 * 48
    assert dense["encoder backward"] == 2 * dense["encoder forward"] - stem


def test_kept_bytes_fall_with_what_is_visible() -> None:
    variants = WORKLOAD.variants("float32")[1:]
    masked, compact = (kept_bytes(TrainingStep(WORKLOAD, variant, None)) for variant in variants)
    assert 0 < compact[0] < 0.75 * masked[0]
    assert compact[0] < compact[1]  # the decoder keeps something, too


def test_report_shows_the_medians(tmp_path: Path) -> None:
    result = benchmark(WORKLOAD, "float32", rounds=1, compile=False, ratios=[0.5], report=lambda line: None)
    page = save(result, tmp_path)
    again = json.loads(page.with_suffix(".json").read_text())
    assert markdown(again, "chart.png").splitlines()[4:8] == page.read_text().splitlines()[4:8]
    compact = again["variants"][2]
    assert f"| {compact['seconds']['decoder forward']:.3f}" in page.read_text()
    steps = [sum(variant["seconds"].values()) for variant in again["variants"]]
    assert ratio_to(again, "original", "step") == pytest.approx(steps[0] / steps[2])
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_bench_verb_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench resnet18 --batch 2 --input-size 64 --decoder-width 32 --rounds 1 --device cpu --out"
    assert main([*arguments.split(), str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("resnet18_float32_*"))) == 3
    assert "| compact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("resnet18 --batch 0", "--batch: 0 must be at least 1"),
        ("resnet18 --input-size 100", "not divisible by the encoder's stride 32"),
        ("resnet_18", "Did you mean"),
        ("resnet18 --input-size 64 --mask-ratio 0.99", "at least one must be visible"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments.split(), "--device", "cpu", "--out", str(tmp_path / "none")]) != 0
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "none").exists()
