"""Studies run on this machine: each node once, several at a time, around failures, through interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from paths import ROOT
from quick_task import ASKED, ENVIRONMENT
from small_disk import fill, small_disk
from study_folder import StudyFolder
from synthetic import record

from eval_suite.cli import main
from eval_suite.study.attempt import attempts, last_attempt
from eval_suite.study.progress import finished
from eval_suite.study.runner import Result, Stopping, run_node


def run(study: StudyFolder, *arguments: str, verb: str = "run") -> int:
    """Run a verb of `spark-eval study`."""
    return main(["study", verb, str(study.file), *arguments])


def start(study: StudyFolder, *arguments: str) -> subprocess.Popen[str]:
    """Start `spark-eval study run` as a process of its own."""
    command = [sys.executable, "-c", "import sys; from eval_suite.cli import main; sys.exit(main())", "study", "run"]
    path = os.pathsep.join(sys.path)
    return subprocess.Popen([*command, str(study.file), *arguments], text=True, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)


def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another process."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within a minute")


@pytest.fixture
def undisturbed(study: StudyFolder) -> dict[str, int]:
    """What the study's nodes come to; its folder is empty again."""
    assert run(study, "--jobs", "4") == 0
    values = study.values()
    study.out.rename(study.folder / "undisturbed")
    return values


def test_every_node_runs_once(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(study, "--jobs", "3") == 0
    assert len(study.values()) == 6
    assert set(study.attempts().values()) == {1}
    assert "6 finished" in capsys.readouterr().err
    assert run(study) == 0
    assert set(study.attempts().values()) == {1}
    assert "all 6 nodes are finished" in capsys.readouterr().out


def test_the_report_follows_the_results(study: StudyFolder) -> None:
    """It comes last, is not made again for nothing, and is when a result is newer."""
    record(1.0).save(study.out / "elsewhere")
    study.change(models=["a"], initialisations={"scratch": {}}, report=True)
    assert run(study) == 0
    assert (study.out / "report" / "report.html").is_file()
    assert run(study) == 0
    assert len(attempts(study.out / "report")) == 1
    (mark,) = study.out.glob("count*/finished.json")
    content = json.loads(mark.read_text())
    mark.write_text(json.dumps({**content, "at": time.time()}))
    assert not finished(study.graph(), study.graph().nodes["report"])


def test_a_change_reruns_what_it_concerns(study: StudyFolder) -> None:
    run(study, "--jobs", "4")
    study.change(overrides={"b": {"when": {"model": "b", "task": "pretrain"}, "settings": {"steps": 4}}})
    assert run(study, "--jobs", "4") == 0
    counted = study.attempts()
    assert len(counted) == 6 + 2  # another pre-training of b, and what builds upon it
    assert set(counted.values()) == {1}


def test_a_failure_blocks_only_what_builds_upon_it(
    study: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble = study.folder / "trouble"
    trouble.touch()
    study.change(overrides={"bad": {"when": {"task": "pretrain", "model": "a"}, "settings": {"trouble": str(trouble)}}})
    assert run(study, "--jobs", "2") == 1
    assert set(study.values()) == {"pretrain-spark-b-s0", "count-spark-b-s0", "count-scratch-a-s0",
                                   "count-scratch-b-s0"}
    said = capsys.readouterr().err
    assert "4 finished, 1 failed, 1 blocked" in said
    assert "exit code 3: error: told to fail" in said
    assert run(study, verb="status") == 1
    table = capsys.readouterr().out
    assert "told to fail" in table
    assert "blocked" in table

    before = study.attempts()
    trouble.unlink()
    assert run(study, "FAILURES", verb="retry") == 2
    assert "'FAILURES' is no node of this study. Did you mean FAILED" in capsys.readouterr().err
    assert run(study, "FAILED", verb="retry") == 0
    again = {name for name, count in study.attempts().items() if count != before.get(name)}
    assert {name.rpartition("-")[0] for name in again} == {"pretrain-spark-a-s0", "count-spark-a-s0"}
    assert run(study, verb="status") == 0
    assert run(study, verb="retry") == 0
    assert "nothing has failed or stopped" in capsys.readouterr().out


def test_retry_makes_the_report_anew(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    trouble = study.folder / "trouble"
    trouble.touch()
    record(1.0).save(study.out / "elsewhere")
    study.change(models=["a"], report=True,
                 overrides={"bad": {"when": {"task": "pretrain"}, "settings": {"trouble": str(trouble)}}})
    assert run(study, "--jobs", "3") == 1
    graph = study.graph()
    assert (study.out / "report" / "report.html").is_file()
    trouble.unlink()
    assert run(study, "--jobs", "3", verb="retry") == 0
    assert len(attempts(study.out / "report")) == 2
    assert finished(graph, graph.nodes["report"])
    scratch = next(name for name in graph.nodes if name.startswith("count-scratch"))
    capsys.readouterr()
    assert run(study, scratch, verb="retry") == 0
    assert f"{scratch}, report: finished" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interrupted_study_saves_and_goes_on(
    study: StudyFolder, undisturbed: dict[str, int], number: int, code: int
) -> None:
    trouble = {"slow": {"when": {"task": "pretrain"}, "settings": {"pause": 1}}}
    study.change(overrides=trouble)
    process = start(study, "--jobs", "4")
    until(lambda: len(list(study.out.glob("pretrain*/metrics.jsonl"))) == 2)
    process.send_signal(number)
    assert process.wait(30) == code
    stopped = [node for node in study.graph() if node.name.startswith("pretrain")]
    assert [attempts(node.folder)[-1].outcome for node in stopped] == ["stopped", "stopped"]
    assert not any(finished(study.graph(), node) for node in stopped)

    study.change(overrides={})
    assert run(study, "--jobs", "4") == 0
    assert study.values() == undisturbed
    steps = [json.loads(line)["step"] for line in (stopped[0].folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]  # none was lost, none repeated


def test_retry_goes_on_with_what_was_stopped(study: StudyFolder) -> None:
    study.change(models=["a"], initialisations={"scratch": {}}, overrides={"slow": {"settings": {"pause": 1}}})
    process = start(study)
    until(lambda: list(study.out.glob("count*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert run(study, verb="retry") == 0
    assert len(study.values()) == 1


def test_a_job_that_gets_nowhere_fails(study: StudyFolder) -> None:
    """Else a time limit that is too short for the first checkpoint would use up a cluster for ever."""
    study.change(models=["a"], initialisations={"scratch": {}}, overrides={"slow": {"settings": {"pause": 3}}})
    graph = study.graph()
    (node,) = graph

    def go() -> Result:
        stopping = Stopping()
        stopping.ask()
        stopping.ask()
        return run_node(graph, node, [{}], stopping, job="12")

    assert [go().outcome for _ in range(2)] == ["stopped", "stopped"]
    (node.folder / "metrics.jsonl").write_text('{"epoch": 1, "step": 1}\n')
    assert [go().outcome for _ in range(2)] == ["stopped", "stopped"]
    assert go() == Result("failed", "stopped 3 times in a row without getting any further; it needs longer goes")


def test_two_runs_at_once_share_the_work(study: StudyFolder, undisturbed: dict[str, int]) -> None:
    study.change(overrides={"slow": {"settings": {"pause": 0.15}}})
    both = [start(study, "--jobs", "2") for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert study.values() == undisturbed
    logs = [path.read_text() for path in study.out.glob("*-*/output.log")]
    assert [log.count("# attempt") for log in logs] == [1] * 6


def test_a_killed_run_is_noticed(study: StudyFolder, undisturbed: dict[str, int]) -> None:
    """Its children may live on: nobody may work in their folders until they have ended."""
    study.change(models=["a"], overrides={"slow": {"when": {"task": "pretrain"}, "settings": {"pause": 0.5}}})
    process = start(study, "--jobs", "2")
    until(lambda: list(study.out.glob("pretrain*/metrics.jsonl")))
    process.kill()
    process.wait()
    assert run(study) == 0
    assert study.values() == {name: value for name, value in undisturbed.items() if "-a-" in name}
    (log,) = [path.read_text() for path in study.out.glob("pretrain*/metrics.jsonl")]
    assert [json.loads(line)["step"] for line in log.splitlines()] == [1, 2, 3]


def test_cancel_from_elsewhere(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    study.change(models=["a"], overrides={"slow": {"settings": {"pause": 30}}})
    process = start(study, "--jobs", "2")
    until(lambda: len(list(study.out.glob("*-a-*/output.log"))) == 2)
    assert run(study, verb="status") == 0
    assert "running" in capsys.readouterr().out
    assert run(study, verb="cancel") == 0
    assert "cancelled: " in capsys.readouterr().out
    until(lambda: process.poll() is not None or any(ASKED in log.read_text() for log in study.out.glob("*/output.log")))
    process.send_signal(signal.SIGTERM)  # asked twice: a step takes too long to wait for its end
    assert process.wait(20) == 75
    run(study, verb="cancel")
    assert "nothing to cancel" in capsys.readouterr().out


def test_cancel_after_the_run_was_killed(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is left to ask but the work itself, which lives on."""
    study.change(models=["a"], initialisations={"scratch": {}},
                 overrides={"slow": {"settings": {"pause": 0.2, "steps": 1000}}})
    process = start(study)
    until(lambda: list(study.out.glob("*-a-*/metrics.jsonl")))
    process.kill()
    process.wait()
    (folder,) = study.out.glob("*-a-*")
    assert run(study, verb="cancel") == 0
    until(lambda: not last_attempt(folder).alive)
    assert ASKED in (folder / "output.log").read_text()
    capsys.readouterr()
    assert run(study, verb="cancel") == 0
    assert "nothing to cancel" in capsys.readouterr().out


def test_gpus_are_shared_out(study: StudyFolder) -> None:
    study.change(overrides={"two": {"when": {"task": "pretrain"}, "resources": {"gpus_per_process": 2}}})
    assert run(study, "--gpus", "3,5,7", "--jobs", "3") == 0
    given = {path.parent.name: json.loads(path.read_text())["CUDA_VISIBLE_DEVICES"]
             for path in study.out.glob(f"*/{ENVIRONMENT}")}
    assert all(len(gpus.split(",")) == (2 if name.startswith("pretrain") else 1) for name, gpus in given.items())
    assert set(",".join(given.values()).split(",")) <= {"3", "5", "7"}


@pytest.mark.parametrize(("resources", "message"), [
    ({"gpus_per_process": 2}, "wants 2 GPUs, but there are 1 here"), ({"nodes": 3}, "wants 3 machines"),
])
def test_what_this_machine_cannot_give_is_refused(
    study: StudyFolder, capsys: pytest.CaptureFixture[str], resources: dict[str, int], message: str
) -> None:
    quick = study.content["initialisations"]["spark"]["task"]
    study.content["initialisations"]["spark"]["task"] = f"{quick}Distributed"
    study.change(overrides={"big": {"when": {"task": "pretrain"}, "resources": resources}})
    assert run(study, "--gpus", "0") == 2
    assert message in capsys.readouterr().err
    assert not study.attempts()


def test_missing_data_is_refused_before_anything_runs(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    study.change(overrides={"data": {"settings": {"root": "/nowhere/images"}}})
    assert run(study) == 2
    assert "not there: /nowhere/images" in capsys.readouterr().err
    assert not study.out.exists()


def test_processes_of_a_node_find_each_other(study: StudyFolder) -> None:
    """As under torchrun: each has a rank, all the same port."""
    quick = study.content["initialisations"]["spark"]["task"]
    study.content["initialisations"]["spark"]["task"] = f"{quick}Distributed"
    two = {"when": {"task": "pretrain"}, "resources": {"processes_per_node": 2}}
    study.change(models=["a"], overrides={"two": two})
    assert run(study) == 0
    (folder,) = study.out.glob("pretrain*")
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["RANK"] for rank in ranks] == ["0", "1"]
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"2"}


@pytest.mark.parametrize(("kind", "reason"), [("Empty", "left no result"), ("Damaged", "value.json is no record")])
def test_a_task_without_a_result_has_failed(
    study: StudyFolder, capsys: pytest.CaptureFixture[str], kind: str, reason: str
) -> None:
    study.content["tasks"]["count"]["task"] += kind
    study.change(models=["a"], initialisations={"scratch": {}})
    assert run(study) == 1
    assert reason in capsys.readouterr().err


def test_a_full_disk_fails_in_a_line_and_blocks_nothing(
    study: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be begun leaves no attempt behind that would have to become stale first."""
    with small_disk(study.folder / "disk", 256) as disk:
        study.change(out=str(disk / "runs"), models=["a"], initialisations={"scratch": {}})
        assert run(study) == 0
        study.change(models=["b"])
        study.graph().save()  # so that it is the attempt that finds the disk full
        full = fill(disk)
        assert run(study) != 0
        said = capsys.readouterr().err
        assert f"no space left on '{disk}'" in said
        assert "Traceback" not in said
        full.unlink()
        assert run(study) == 0
