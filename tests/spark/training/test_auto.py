"""What `auto` came to holds when a run goes on, whatever it would come to now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spark.config.recipe import with_values
from spark.methods.spark.config import SparKConfig
from spark.runs.checkpoint import LAST, save_checkpoint
from spark.training.auto import kept, resolved_before, resolved_precision
from spark.utils.distributed import Ranks

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path: Path) -> SparKConfig:
    return with_values(SparKConfig(), {"out": str(tmp_path), "data.root": "photos"})


def test_it_is_read_from_the_newest_whole_checkpoint(config: SparKConfig, tmp_path: Path) -> None:
    assert resolved_before(config, Ranks(CPU)) == {}
    folder = tmp_path / "checkpoints"
    for precision in ("bfloat16", "float32"):
        save_checkpoint(folder, {"model": torch.zeros(3), "resolved": {"train.precision": precision}})
    assert resolved_before(config, Ranks(CPU)) == {"train.precision": "float32"}
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:50])
    assert resolved_before(config, Ranks(CPU)) == {"train.precision": "bfloat16"}
    assert resolved_before(with_values(config, {"resume": "never"}), Ranks(CPU)) == {}


def test_a_checkpoint_of_before_tells_nothing(config: SparKConfig, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints", {"step": 1})
    assert resolved_before(config, Ranks(CPU)) == {}


def test_what_is_written_is_not_overruled(config: SparKConfig) -> None:
    before = {"train.precision": "bfloat16", "engine": "masked"}
    assert (kept(config, before).train.precision, kept(config, before).engine) == ("bfloat16", "masked")
    assert resolved_precision(config, "train.precision", CPU, before) == "bfloat16"
    written = with_values(config, {"train.precision": "float32", "engine": "compact"})
    assert kept(written, before) == written
    assert resolved_precision(written, "train.precision", CPU, before) == "float32"
    assert resolved_precision(config, "train.precision", CPU, {}) == "float32"
