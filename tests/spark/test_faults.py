"""Faults of the machine are told in a line that names the place and the remedy, and what was good stays."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_disk import fill, remount, small_disk

from spark.errors import UserError, exits_cleanly
from spark.faults import fault
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.metrics import MetricsLog, read_metrics
from spark.utils.files import atomic_path, torch_save, write_text

LARGE = {"weight": torch.zeros(400_000)}


@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, "no space left on '/'"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "fails"),
    (errno.ESTALE, "stale"), (errno.EFBIG, "ulimit"),
])
def test_each_is_told_in_a_line(number: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> int:
        raise OSError(number, "as the system says it", "/nowhere/file")

    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: '/nowhere/file'")
    assert words in line


def test_a_dead_worker_is_told() -> None:
    told = fault(RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "))
    assert told is not None
    assert "too little memory" in told


def test_other_errors_stay_what_they_are() -> None:
    assert fault(RuntimeError("shapes do not fit")) is None
    assert fault(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    with pytest.raises(RuntimeError, match="shapes"):
        exits_cleanly(lambda: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))()


def write_checkpoint(folder: Path) -> None:
    save_checkpoint(folder / "checkpoints", LARGE)


def write_export(folder: Path) -> None:
    with atomic_path(folder / "encoder.safetensors") as temporary:
        save_file(LARGE, temporary)


def write_tensors(folder: Path) -> None:
    with atomic_path(folder / "best.pt") as temporary:
        torch_save(LARGE, temporary)


def write_record(folder: Path) -> None:
    write_text(folder / "result.json", json.dumps(list(range(400_000))))


def write_metrics(folder: Path) -> None:
    with MetricsLog(folder, 1) as log:
        for step in range(100):
            log.write(step, values=list(range(10_000)))


@pytest.mark.parametrize("write", [write_checkpoint, write_export, write_tensors, write_record, write_metrics])
def test_a_full_disk_is_named_by_every_writer(write, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        with pytest.raises(UserError, match=f"cannot write '{disk}.*: no space left on '{disk}'"):
            write(disk)
        assert not [path for path in disk.rglob("*") if ".tmp" in path.name]


def test_the_last_checkpoint_and_the_records_outlive_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        save_checkpoint(disk / "checkpoints", {"step": 1, **LARGE})
        with MetricsLog(disk) as log:
            log.write(1, loss=1.0)
        fill(disk)
        with pytest.raises(UserError, match="no space left"):
            save_checkpoint(disk / "checkpoints", {"step": 2, **LARGE})
        with pytest.raises(UserError, match="no space left"), MetricsLog(disk, 1):
            pass
        kept = load_latest(disk / "checkpoints")
        assert kept is not None
        assert kept["step"] == 1
        assert [record["step"] for record in read_metrics(disk)] == [1]


def test_a_disk_that_turned_read_only_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        save_checkpoint(disk / "checkpoints", LARGE)
        remount(disk, "ro")
        with pytest.raises(UserError, match=f"'{disk}' is read-only"):
            save_checkpoint(disk / "checkpoints", LARGE)
        assert load_latest(disk / "checkpoints") is not None
