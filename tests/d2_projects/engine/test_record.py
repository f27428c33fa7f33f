"""What decides whether two detectors may be compared."""

from __future__ import annotations

from pathlib import Path

from tiny_coco import RECIPE, TINY

from d2_projects.data.coco import check
from d2_projects.engine.config import load
from d2_projects.engine.record import protocol_of


def test_initialization_and_seed_do_not_change_the_protocol(coco: Path, tmp_path: Path) -> None:
    def protocol(*overrides: str) -> dict[str, object]:
        return protocol_of(load(RECIPE, [*TINY, *overrides]), check(coco))

    assert protocol() == protocol("seed=5", "init=elsewhere", f"out={tmp_path}", "data.root=/moved")
    assert protocol() != protocol("optimizer.lr=0.5")
