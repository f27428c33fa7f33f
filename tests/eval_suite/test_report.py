"""The report's page, from synthetic runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from synthetic import SCRATCH, SPARK, record

from eval_suite.report import write_report


def make_runs(root: Path) -> Path:
    """Two fine-tunings with curves, a pre-training with pictures, a detection picture."""
    for name, init, top in (("scratch", SCRATCH, 50.0), ("spark<b>", SPARK, 62.0)):
        folder = root / name
        folder.mkdir(parents=True)
        record(top, init).save(folder)
        entries = [{"step": 12 * e, "epoch": e, "loss": 2.4 / e, "top1": top * e / 8, "top1_ema": top * e / 9}
                   for e in range(1, 9)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    pretraining = root / "pretrain"
    (pretraining / "reconstructions").mkdir(parents=True)
    for epoch, colour in ((9, "red"), (10, "blue")):
        Image.new("RGB", (384, 128), colour).save(pretraining / f"reconstructions/epoch_{epoch}.png")
    (pretraining / "metrics.jsonl").write_text("".join(
        json.dumps({"step": step, "epoch": step // 10, "loss": 1 / step, "lr": 1e-4}) + "\n"
        for step in range(1, 60)
    ))
    Image.new("RGB", (300, 200), "green").save(root / "scratch/detections.png")
    return root


def test_page_is_self_contained_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_report(make_runs(tmp_path / "runs"), tmp_path / "out")
    text = page.read_text()
    assert "+12.00" in text
    assert "not paper numbers" in text
    assert "epoch_10" in text
    assert "epoch_9" not in text  # the last picture only, by number
    assert "pre-training" in text
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 4  # two figures, a reconstruction, a detection
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "spark<b>" not in text  # escaped
    assert "+12.00" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/table.csv").is_file()
    printed = capsys.readouterr().out
    assert "+12.00" in printed
    assert str(page) in printed


def test_report_of_results_alone(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    record(40, SPARK, origin="measured").save(tmp_path / "only")
    text = write_report(tmp_path).read_text()
    assert "no scratch run" in text
    assert "not paper numbers" not in text
    assert "<figure" not in text
    write_report(tmp_path)  # a report beside the runs is no run
