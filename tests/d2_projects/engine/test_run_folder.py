"""A run's folder: whose it is, and what is removed from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_coco import RECIPE, TINY

from d2_projects.engine.run import run
from d2_projects.engine.run_folder import remove_run
from spark.errors import UserError


def test_a_removal_that_is_interrupted_leaves_no_checkpoint_to_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.pt").write_bytes(b"")
    (out / "identity.json").write_text("{}")
    for name in ("own.png", "notes.txt"):
        (out / name).write_text("")
    removed: list[str] = []
    unlink, rmtree = Path.unlink, shutil.rmtree
    monkeypatch.setattr(Path, "unlink", lambda path, **options: removed.append(path.name) or unlink(path, **options))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: removed.append(path.name) or rmtree(path, **options))
    remove_run(out, ("own.png",))
    assert removed.index("result.json") < removed.index("checkpoints") < removed.index("identity.json")
    assert removed[-1] == "identity.json"
    assert [path.name for path in out.iterdir()] == ["notes.txt"]  # of which no project knows


def test_checkpoints_of_an_unknown_run_are_not_taken_up(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"a run without identity\.json.* resume=never"):
        run(RECIPE, [*TINY, f"data.root={coco}", f"out={out}"])
    assert not (out / "identity.json").exists()
