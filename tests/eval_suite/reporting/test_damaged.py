"""One damaged file ends neither a report nor a table of states: it is left out, and named once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import SPARK, record, write_run, write_study

from eval_suite.cli import main
from eval_suite.study.attempt import attempts, last_attempt
from eval_suite.study.graph import load_graph
from spark.errors import UserError
from spark.runs.metrics import read_log, read_metrics
from spark.runs.record import load_record


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "empty": lambda path: path.write_bytes(b""),
    "no UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}\n'),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "null": lambda path: path.write_text("null\n"),
    "missing keys": lambda path: path.write_text("{}\n"),
    "NaN": lambda path: path.write_text('{"step": NaN, "seed": NaN, "nodes": NaN}\n'),
    "infinite": lambda path: path.write_text('{"step": 1e999, "nodes": [1e999]}\n'),
    "huge": lambda path: path.write_text('{"step": %s}\n' % ("9" * 5000)),
    "deep": lambda path: path.write_text("[" * 100_000 + "\n"),
    "half a character": lambda path: path.write_text('{"step": 1, "name": "\\ud800"}\n'),
    "directory": _directory,
    "loop": _loop,
    "pipe": _pipe,
}
# A log or configuration without a sound line is named, too, but an empty one is sound.
NAMED = {"result.json", "graph.json"}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "config.yaml", "graph.json"])
def test_a_report_goes_on_without_a_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    write_run(tmp_path / "runs/whole", record(40.0))
    write_run(tmp_path / "runs/hurt", record(50.0, SPARK))
    victim = tmp_path / "runs" / ("" if name == "graph.json" else "hurt") / name
    victim.touch()
    DAMAGE[kind](victim)
    assert main(["report", str(tmp_path / "runs")]) == 0
    page, told = (tmp_path / "runs/report/report.html").read_text(), capsys.readouterr().err
    assert "40.00" in page
    if name in NAMED:
        assert told.count(str(victim)) == 1
        assert page.count(f"{victim}") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize(("field", "value"), [
    ("seed", "zero"), ("seed", 1.5), ("seed", True), ("epochs", None), ("init", []), ("init", {"kind": 3}),
    ("metrics", {"top1_last": 5}), ("metrics", {"top1_last": {"value": "high", "unit": "%"}}), ("model", ["a"]),
    ("protocol", 7), ("hardware", {}), ("wall_seconds", "long"), ("origin", "guessed"), ("images_per_second", "fast"),
    ("environment", [1]), ("main_metric", 3), ("main_metric", "other"), ("more", 1), ("schema_version", {}),
])
def test_a_record_with_values_of_other_types_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    write_run(tmp_path / "run", record(50.0))
    path = tmp_path / "run/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(UserError, match=r"result\.json"):
        load_record(path)


def test_damaged_lines_of_a_log_are_named_and_the_others_kept(tmp_path: Path) -> None:
    damaged = ['{"step": "two"}', "\x00\x01", '{"step": 4, "loss": NaN}', "[5]"]
    lines = ['{"step": 1, "loss": 2.0}', *damaged, '{"step": 6}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 7, "lo')
    records, complaint = read_log(tmp_path)
    assert [entry["step"] for entry in records] == [1, 6]
    assert "line 2" in complaint
    assert "3 more" in complaint
    assert read_metrics(tmp_path) == records


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_attempts_and_graphs_are_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts/0001.json").write_text('{"number": 1}')
    (tmp_path / "attempts/0002.json.txt").write_text("mine")
    DAMAGE[kind](tmp_path / "attempts/0001.json")
    last = last_attempt(tmp_path)
    assert last is not None
    assert "0001.json" in last.reason
    assert len(attempts(tmp_path)) == 1
    (tmp_path / "graph.json").write_text('{"nodes": [{"name": "a"}]}')
    DAMAGE[kind](tmp_path / "graph.json")
    with pytest.raises(UserError, match=r"graph\.json"):
        load_graph(tmp_path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_picture_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    study = write_study(tmp_path / "study")
    victim = sorted((study / "pretrain-resnet18-s0/reconstructions").glob("*.png"))[0]  # epoch_10, the last one
    DAMAGE[kind](victim)
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().err.count(str(victim)) == 1
