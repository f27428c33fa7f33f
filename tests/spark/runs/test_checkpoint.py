"""Checkpoints survive kills, and never run code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spark.errors import UserError
from spark.runs.checkpoint import LAST, PREVIOUS, load_file, load_latest, save_checkpoint


def content(step: int) -> dict:
    return {"step": step, "model": {"weight": torch.full((64, 64), float(step))}}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Return a folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(tmp_path, content(step))
    return tmp_path


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def flip(path: Path) -> None:
    """Damage the tensor's bytes, which `torch.load` alone would not notice."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)


def test_the_latest_is_loaded(two: Path) -> None:
    loaded = load_latest(two)
    assert loaded is not None
    assert loaded["step"] == 2
    assert loaded["model"]["weight"].equal(content(2)["model"]["weight"])
    assert sorted(path.name for path in two.iterdir()) == [LAST, PREVIOUS]


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None


@pytest.mark.parametrize("damage", [tear, flip])
def test_a_damaged_one_is_replaced_by_the_one_before_with_a_warning(two: Path, damage) -> None:
    damage(two / LAST)
    with pytest.warns(UserWarning, match=r"last\.pt.*trying the one before"):
        loaded = load_latest(two)
    assert loaded is not None
    assert loaded["step"] == 1


def test_a_damaged_one_never_displaces_the_whole_one_before(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tear(two / LAST)
    with pytest.warns(UserWarning, match="trying the one before"):
        load_latest(two)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spark.utils.files._fsync_folder", killed)  # right after the new file got its name
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(two, content(3))
    tear(two / LAST)
    with pytest.warns(UserWarning, match="trying the one before"):
        loaded = load_latest(two)
    assert loaded is not None
    assert loaded["step"] == 1


def test_a_kill_between_the_renames_loses_nothing(two: Path) -> None:
    (two / LAST).rename(two / PREVIOUS)
    loaded = load_latest(two)
    assert loaded is not None
    assert loaded["step"] == 2


def test_a_failed_save_leaves_the_last_one(two: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(two, {"step": lambda: 0})
    loaded = load_latest(two)
    assert loaded is not None
    assert loaded["step"] == 2
    assert sorted(path.name for path in two.iterdir()) == [LAST, PREVIOUS]


def test_no_other_is_tried_where_there_is_none(two: Path) -> None:
    (two / PREVIOUS).unlink()
    tear(two / LAST)
    with pytest.warns(UserWarning, match="last") as said, pytest.raises(UserError, match="no checkpoint is whole"):
        load_latest(two)
    assert "one before" not in str(said[0].message)


def test_when_none_is_whole_it_stops(two: Path) -> None:
    tear(two / LAST)
    tear(two / PREVIOUS)
    with (
        pytest.warns(UserWarning, match="trying the one before"),
        pytest.raises(UserError, match=r"no checkpoint is whole: .*last\.pt, .*previous\.pt"),
    ):
        load_latest(two)
    assert (two / LAST).exists()


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code from a checkpoint ran')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_and_their_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "trap.pt"
    torch.save({"model": Trap()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="objects other than tensors; it is not loaded"):
        load_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "whole.pt"
    torch.save(content(1), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert load_file(path)["step"] == 1
    for cut in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"whole\.pt"):
            load_file(path)


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("hello\n" * 100)
    with pytest.raises(UserError, match=r"x\.pt' is truncated or no checkpoint"):
        load_file(tmp_path / "x.pt")


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Save another content in a file's place, whole and valid."""
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["model"].update(weight=torch.zeros(64, 64)),
        lambda saved: saved["model"].update(more=torch.zeros(1)),
        lambda saved: saved["model"].clear(),
        lambda saved: saved.pop("step"),
        lambda saved: saved.update(step=7),
    ],
)
def test_a_valid_file_with_other_content_is_passed_over(two: Path, change: Callable[[dict], object]) -> None:
    edit(two / LAST, change)
    with pytest.warns(UserWarning, match=r"last\.pt' is damaged: it does not hold what was saved; trying the one"):
        loaded = load_latest(two)
    assert loaded == {"step": 1, "model": loaded["model"]}
    assert (two / "last.pt.damaged").is_file()


def test_a_checkpoint_of_an_older_version_has_no_checksum(two: Path) -> None:
    edit(two / LAST, lambda saved: saved.pop("checksum"))
    assert load_file(two / LAST)["step"] == 2


def test_one_of_something_else_is_passed_over_if_the_one_before_is_of_this(two: Path) -> None:
    def use(saved: dict) -> None:
        if saved["step"] == 2:
            raise KeyError("optimizer")

    with pytest.warns(UserWarning, match=r"last\.pt' is not one of this run \(KeyError: 'optimizer'\); trying"):
        loaded = load_latest(two, use)
    assert loaded is not None
    assert loaded["step"] == 1


def test_nothing_is_renamed_where_none_is_of_this_run(two: Path) -> None:
    refusal = r"previous\.pt' is not one of this run"
    with pytest.warns(UserWarning, match="before"), pytest.raises(UserError, match=refusal):
        load_latest(two, lambda saved: saved["optimizer"])
    assert sorted(path.name for path in two.iterdir()) == [LAST, PREVIOUS]
