"""What a finished node tells: how long it took over all attempts, and on how many GPUs."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import pytest
from study_folder import StudyFolder
from synthetic import record

from eval_suite.cli import main
from eval_suite.study.attempt import Attempt, last_attempt
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import FINISHED_FILE, finished, finished_above, mark_finished, progress, read_finished
from eval_suite.study.runner import Stopping, run_node


def test_attempts_that_were_cut_off_count_as_long_as_they_were_seen(study: StudyFolder) -> None:
    node = next(iter(study.graph()))
    node = dataclasses.replace(node, resources=dataclasses.replace(node.resources, gpus_per_process=4))
    with Attempt(node.folder) as first:
        pass
    path = node.folder / "attempts" / f"{first.number:04d}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "process": (1, 1), "started": time.time() - 9000, "ended": None}))
    os.utime(path, (time.time() - 1800,) * 2)  # two hours after it began
    with Attempt(node.folder):
        mark_finished(node, {})
    mark = read_finished(node)
    assert mark is not None
    assert 7200 <= mark.seconds < 7260
    assert mark.gpus == 4


def test_a_clock_that_is_set_back_gives_no_rate_and_no_negative_time(study: StudyFolder) -> None:
    node = next(iter(study.graph()))
    with Attempt(node.folder) as attempt:
        path = node.folder / "attempts" / f"{attempt.number:04d}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": time.time() + 3600}))
        (node.folder / "metrics.jsonl").write_text('{"step": 2, "epoch": 2}\n')
        last = last_attempt(node.folder)
        assert last is not None
        assert progress(node, last).per_hour is None
        mark_finished(node, {})
    mark = read_finished(node)
    assert mark is not None
    assert mark.seconds == 0


@pytest.mark.parametrize("shift", [-3600, 3600])
def test_a_report_is_made_again_when_what_it_is_about_is_whatever_the_clock_says(
    study: StudyFolder, shift: float
) -> None:
    record(1.0).save(study.out / "elsewhere")
    graph = build_graph_with_report(study)
    *others, report = graph
    for node in others:
        assert run_node(graph, node, [{}], Stopping()).outcome == "finished"
        set_clock(node, 3600)  # it was wrong, and is right again when the report is made
    with Attempt(report.folder):
        (report.folder / "report.html").write_text("")
        mark_finished(report, {}, finished_above(graph, report))
    assert finished(graph, report)
    set_clock(others[0], shift)
    assert not finished(graph, report)


def build_graph_with_report(study: StudyFolder) -> Graph:
    """A study of one node and its report."""
    study.change(models=["a"], initialisations={"scratch": {}}, report=True)
    return study.graph()


def set_clock(node: Node, seconds: float) -> None:
    """Let a node have finished at another time."""
    path = node.folder / FINISHED_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "at": content["at"] + seconds}))


@pytest.mark.parametrize("name", ["finished.json", "metrics.jsonl", "attempts/0001.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1]\n", b'{"step": "x", "epoch": [], "number": 1e999}\n'])
def test_status_goes_on_without_a_damaged_file(
    study: StudyFolder, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    graph = study.graph()
    graph.save()
    hurt = next(iter(graph))
    (hurt.folder / "attempts").mkdir(parents=True)
    (hurt.folder / name).write_bytes(content)
    assert main(["study", "status", str(study.file)]) in (0, 1)
    told = capsys.readouterr().out
    assert all(node.name in "".join(told.split()) for node in graph)
    if name == "finished.json":
        assert "damaged" in told
