"""What is said of Slurm's jobs, with stand-ins for its programs; tests/slurm has the real ones."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from paths import ROOT
from study_folder import StudyFolder

from eval_suite.cli import main
from eval_suite.study.attempt import Attempt, last_attempt
from eval_suite.study.launch.slurm import PYTHON
from eval_suite.study.launch.slurm_batch import traps
from eval_suite.study.launch.slurm_job import REQUEUE_SECONDS


@pytest.fixture
def submitted(study: StudyFolder) -> StudyFolder:
    """A study of one node, whose job is number 12."""
    study.change(models=["a"], initialisations={"scratch": {}})
    graph = study.graph()
    graph.save()
    (name,) = graph.nodes
    line = {"node": name, "job": "12", "at": time.time(), "log": str(study.out / "12_0_log.out"), "called_off": False}
    (study.out / "submissions.jsonl").write_text(json.dumps(line) + "\n")
    return study


def stand_ins(folder: Path, patch: pytest.MonkeyPatch, programs: Mapping[str, str]) -> None:
    """Put programs that are shell scripts before all others."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(("programs", "said"), [
    ({"squeue": "echo '12|PENDING|Priority'"}, "queued │ │ │ │ │ job 12 pending (Priority)"),
    ({"squeue": "echo '12|TIMEOUT|TimeLimit'"}, "job 12 timeout (TimeLimit), and never began"),
    ({"squeue": "", "sacct": "echo '12|OUT_OF_MEMORY'"}, "job 12 out_of_memory, and never began"),
    ({"squeue": "", "sacct": "echo disabled >&2; exit 1"}, "job 12 ended, and never began"),
    ({"squeue": "echo away >&2; exit 1"}, "unknown │ │ │ │ │ job 12: squeue failed: away"),
])
def test_jobs_that_never_began(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    programs: Mapping[str, str], said: str,
) -> None:
    """Slurm forgets a job minutes after its end; its accounts, if it keeps any, do not."""
    stand_ins(tmp_path, monkeypatch, programs)
    assert main(["study", "status", str(submitted.file)]) == int("never" in said)
    assert said in " ".join(capsys.readouterr().out.split())


def test_what_ran_when_slurm_was_last_heard_of_is_not_lost(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is it begun again; that it failed its file tells."""
    stand_ins(tmp_path, monkeypatch, {"squeue": "echo away >&2; exit 1"})
    (node,) = submitted.graph()
    with Attempt(node.folder, "12") as attempt:
        assert main(["study", "status", str(submitted.file)]) == 0
        assert "1 unknown" in capsys.readouterr().out
        for name in (node.name, "FAILED"):
            assert main(["study", "retry", str(submitted.file), name, "--cluster", "one_machine"]) == 2
            assert f"what {node.name} is doing is not known (job 12: squeue failed: away)" in capsys.readouterr().err
        attempt.end("failed", "exit code 3")
    assert main(["study", "status", str(submitted.file)]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_a_signal_to_the_batch_script_is_outlived(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun kills what runs; the script notes how it ended, ends what is left of it, and puts the job back."""
    (node,) = submitted.graph()
    stand_ins(tmp_path, monkeypatch, {
        "squeue": "echo '12|RUNNING|None'", "scontrol": f'echo "$@" > {tmp_path}/asked; kill -KILL $PPID',
    })
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as work:
        cut_off = Attempt(node.folder, "12").__enter__()
        cut_off.children([work.pid])
        path = node.folder / "attempts" / "0001.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "process": [os.getpid(), 1]}))  # a stranger has that number now
        script = "\n".join([*traps(submitted.out, sys.executable), "kill -TERM $$", "exit 9"])
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        assert subprocess.run(["bash", "-c", script], check=False, cwd=ROOT).returncode == 9
        assert work.wait(20) == -signal.SIGKILL
    attempt = last_attempt(node.folder)
    assert attempt is not None
    assert attempt.outcome == "stopped"
    assert (tmp_path / "asked").read_text() == "requeue 12\n"


def test_cancel_where_slurm_does_not_answer(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What runs on this machine is stopped all the same."""
    stand_ins(tmp_path, monkeypatch, {"squeue": "echo cannot connect >&2; exit 1"})
    (node,) = submitted.graph()
    with Attempt(node.folder) as attempt, subprocess.Popen(["sleep", "60"], start_new_session=True) as work:
        attempt.children([work.pid])
        path = node.folder / "attempts" / "0001.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "process": [os.getpid(), 1]}))  # a stranger has that number now
        assert main(["study", "cancel", str(submitted.file)]) == 1
        assert work.wait(20) == -signal.SIGTERM
    said = capsys.readouterr()
    assert "error: squeue failed: cannot connect" in said.err
    assert f"cancelled: {node.name}" in said.out


def test_what_was_called_off_waits(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is nothing that went wrong."""
    stand_ins(tmp_path, monkeypatch, {"squeue": "echo '12|PENDING|Priority'", "scancel": ""})
    assert main(["study", "cancel", str(submitted.file)]) == 0
    stand_ins(tmp_path, monkeypatch, {"squeue": "echo '12|CANCELLED|None'"})
    assert main(["study", "status", str(submitted.file)]) == 0
    assert "1 waiting" in " ".join(capsys.readouterr().out.split())


def test_a_warning_before_python_listens() -> None:
    """A job that it ended would have failed."""
    program = "import time; print(flush=True); time.sleep(1); print('worked')"
    command = f"exec {PYTHON} -c {shlex.quote(program)}"
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        job.stdout.readline()
        job.send_signal(signal.SIGUSR2)
        assert job.stdout.read() == "worked\n"
        assert job.wait() == 0


NODE_JOB = """
import os, signal
from pathlib import Path
from eval_suite.study.launch.slurm_job import NodeJob

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGUSR2)

late = Late()  # is forgotten when Python has given up its handlers of signals
out = Path({out!r})
NodeJob(str(out), str(out / "graph.json"), {name!r}, {place!r}, {patience}, {limit})()
"""


def run_job(study: StudyFolder, patience: float, limit: float) -> subprocess.CompletedProcess[str]:
    """Run the study's only node as Slurm's job number 12 does."""
    (node,) = study.graph()
    program = NODE_JOB.format(out=str(study.out.absolute()), name=node.name, place=str(study.folder),
                              patience=patience, limit=limit)
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12"}
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, **job}, capture_output=True, text=True,
                          check=False)


def test_a_warning_to_what_has_just_finished(submitted: StudyFolder) -> None:
    """A job that it ended would have failed, and with it all that waits for its result."""
    done = run_job(submitted, patience=30, limit=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(submitted.attempts().values()) == {1}


def test_a_job_that_was_not_warned_in_time_looks_at_the_clock(
    submitted: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves, and asks to be put back, whereupon Slurm ends it."""
    stand_ins(tmp_path, monkeypatch, {"squeue": "echo '12|RUNNING|None'",
                                      "scontrol": f'echo "$@" > {tmp_path}/asked; kill -KILL $PPID'})
    submitted.change(overrides={"slow": {"settings": {"pause": 1}}, "longer": {"settings": {"steps": 30}}})
    submitted.graph().save()
    done = run_job(submitted, patience=5, limit=REQUEUE_SECONDS + 7)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert (tmp_path / "asked").read_text() == "requeue 12\n"
    (node,) = submitted.graph()
    attempt = last_attempt(node.folder)
    assert attempt is not None
    assert attempt.outcome == "stopped"
