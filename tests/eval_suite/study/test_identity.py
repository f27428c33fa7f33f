"""A study's data is what is trained on: what runs leave in its folder, or systems, makes no node another."""

from __future__ import annotations

from pathlib import Path

from eval_suite.study.identity import DataIdentities


def test_runs_below_the_data_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").touch()
    before, count = DataIdentities().of(tmp_path), DataIdentities().images(tmp_path)
    for name in ("runs/x/config.yaml", "runs/x/metrics.jsonl", "runs/x/curve.png", "cat/@eaDir/1.png", ".git/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs" / "around").symlink_to(tmp_path)
    assert DataIdentities().of(tmp_path) == before
    assert DataIdentities().images(tmp_path) == count == 1
