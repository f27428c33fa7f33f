"""Studies through a real Slurm: dependencies, preemption, time limits, broken machines, failures, DDP, cancelling.

Run by `make test-slurm`, not by `make test`: it needs root and Debian's Slurm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from cluster import SlurmCluster, missing, wait_until
from paths import ROOT
from PIL import Image
from quick_task import ENVIRONMENT
from study_folder import StudyFolder
from synthetic import record

from eval_suite.cli import main
from eval_suite.study.attempt import attempts, last_attempt
from eval_suite.study.launch.slurm import SUBMISSIONS
from eval_suite.study.progress import read_finished

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]
STEPS = 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Four nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    folder.chmod(0o755)
    with SlurmCluster(folder / "slurm", nodes=4) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.chdir(ROOT)
        yield running


@pytest.fixture
def study(cluster: SlurmCluster, tmp_path: Path) -> Iterator[SlurmStudy]:
    """A study of quick tasks; whatever it leaves on the cluster is taken away."""
    study = SlurmStudy(tmp_path, cluster)
    yield study
    study.verb("cancel")
    wait_until(lambda: not cluster.run("squeue", "--noheader"))
    wait_until(cluster.idle)


class SlurmStudy(StudyFolder):
    """A study of quick tasks that is submitted to the cluster."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.cluster_file = folder / "cluster.yaml"
        self.cluster_file.write_text(yaml.safe_dump({
            "partition": "low", "signal_seconds": 52, "setup": ["export GLOO_SOCKET_IFNAME=lo"],
            "resources": {"minutes": 30, "cpus_per_process": 1, "gpus_per_process": 0},
        }))

    def slurm_is_away_at_first(self) -> None:
        """Let each job find that Slurm does not answer when it asks for the first time."""
        programs = self.folder / "programs"
        programs.mkdir()
        for name in ("squeue", "scontrol"):
            first = 'mkdir "$0.$SLURM_JOB_ID" 2>/dev/null && { echo away >&2; exit 1; }'
            (programs / name).write_text(f'#!/bin/sh\n{first}\nexec {shutil.which(name)} "$@"\n')
            (programs / name).chmod(0o755)
        content = yaml.safe_load(self.cluster_file.read_text())
        content["setup"].append(f"export PATH={programs}:$PATH")
        self.cluster_file.write_text(yaml.safe_dump(content))

    def verb(self, verb: str, *arguments: str) -> int:
        """Run a verb of `spark-eval study`."""
        return main(["study", verb, str(self.file), *arguments])

    def submit(self, verb: str = "submit") -> None:
        """Submit what is not finished."""
        assert self.verb(verb, "--cluster", str(self.cluster_file)) == 0

    def jobs(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        return self.cluster.run("squeue", "--noheader", "--array", "--format", "%i").split()

    def job_of(self, name: str) -> str:
        """Return the latest job of a node."""
        lines = [json.loads(line) for line in (self.out / SUBMISSIONS).read_text().splitlines()]
        return str(next(line["job"] for line in reversed(lines) if line["node"].startswith(name)))

    def until_all_ended(self, seconds: float = 120) -> None:
        """Wait until Slurm knows of no job."""
        wait_until(lambda: not self.jobs(), seconds)

    def folder_of(self, start: str) -> Path:
        """Return the folder of the node whose name begins so."""
        (found,) = self.out.glob(f"{start}*")
        return found

    def host_of(self, start: str) -> str:
        """Return the machine that works on a node."""
        attempt = last_attempt(self.folder_of(start))
        assert attempt is not None
        return attempt.machine.partition("/")[0]


def test_a_study_runs_to_its_end(study: SlurmStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven nodes in three levels; the report last. Submitted twice, each runs once, on the code of then."""
    record(1.0).save(study.out / "elsewhere")
    study.change(report=True)
    study.submit()
    study.submit()
    assert "0 jobs submitted" in capsys.readouterr().out
    study.until_all_ended()
    assert len(study.values()) == 6
    assert set(study.attempts().values()) == {1}
    assert (study.out / "report" / "report.html").is_file()
    assert study.verb("status") == 0
    assert "7 finished" in capsys.readouterr().out
    (environment,) = study.out.glob(f"count-spark-a*/{ENVIRONMENT}")
    code = Path(json.loads(environment.read_text())["PYTHONPATH"].partition(os.pathsep)[0])
    assert code.is_relative_to(study.out)
    assert (code / "eval_suite" / "cli.py").is_file()
    begun = {path.parent.parent.name.rpartition("-")[0]: json.loads(path.read_text())["started"]
             for path in study.out.glob("*/attempts/0001.json")}
    ended = {path.parent.name.rpartition("-")[0]: json.loads(path.read_text())["at"]
             for path in study.out.glob("*/finished.json")}
    assert begun["count-spark-a-s0"] > ended["pretrain-spark-a-s0"]


def test_disturbed_jobs_resume(study: SlurmStudy) -> None:
    """One is preempted, two reach their time limit, one loses its machine; none loses a step.

    Of those out of time, one does not save, so that it is ended before Slurm ends the job.
    """
    (study.folder / "recipe.yaml").write_text(yaml.safe_dump({"steps": STEPS}))
    study.change(models=["preempted", "timed_out", "crashed", "deaf"], initialisations={"scratch": {}})
    assert study.verb("run", "--jobs", "4") == 0
    undisturbed = study.values()
    study.out.rename(study.folder / "undisturbed")

    # Slurm looks at time limits twice a minute, so the warning comes 8 to 38 seconds after the start.
    timed_out = {"when": {"model": "timed_out"}, "resources": {"minutes": 1}, "settings": {"pause": 6}}
    deaf = {"when": {"model": "deaf"}, "resources": {"minutes": 1}, "settings": {"deaf": True}}
    alone = {"resources": {"slurm": {"exclusive": True}}}
    study.change(overrides={"slow": {"settings": {"pause": 2}}, "timed_out": timed_out, "deaf": deaf, "alone": alone})
    study.slurm_is_away_at_first()
    study.submit()
    # Not for those out of time, which a slow machine may warn before their first step.
    wait_until(lambda: all(list(study.out.glob(f"count-scratch-{name}*/metrics.jsonl")) for name in
                           ("preempted", "crashed")))
    preempted, crashed = study.host_of("count-scratch-preempted"), study.host_of("count-scratch-crashed")
    study.cluster.kill_node(crashed)
    study.cluster.run("sbatch", "--partition", "high", "--nodelist", preempted, "--exclusive", "--output", "/dev/null",
                      "--wrap", "sleep 2")
    wait_until(lambda: "down" in study.cluster.run("sinfo", "--noheader", "--nodes", crashed, "--format", "%t"))
    study.cluster.start_node(crashed)
    study.until_all_ended(240)
    assert study.values() == undisturbed
    for folder in study.out.glob("count-*"):
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, STEPS + 1)), folder
        assert len(attempts(folder)) > 1, folder
    assert list((study.folder / "programs").glob("scontrol.*"))
    first = {name: attempts(study.folder_of(f"count-scratch-{name}"))[0] for name in
             ("preempted", "timed_out", "crashed", "deaf")}
    assert first["preempted"].outcome == first["timed_out"].outcome == first["deaf"].outcome == "stopped"
    assert first["crashed"].ended is None


def test_a_failure_blocks_only_what_builds_upon_it(study: SlurmStudy, capsys: pytest.CaptureFixture[str]) -> None:
    trouble = study.folder / "trouble"
    trouble.touch()
    record(1.0).save(study.out / "elsewhere")
    bad = {"when": {"task": "pretrain", "model": "a"}, "settings": {"trouble": str(trouble)}}
    slow = {"when": {"model": "b"}, "settings": {"pause": 4}}
    study.change(report=True, overrides={"bad": bad, "slow": slow})
    study.submit()
    report = study.job_of("report")
    failing = {study.job_of("pretrain-spark-a"), study.job_of("count-spark-a")}
    wait_until(lambda: not failing.intersection(study.jobs()))
    assert study.verb("status") == 1
    table = capsys.readouterr().out
    assert "told to fail" in table
    assert "1 blocked" in " ".join(table.split())

    before = study.attempts()
    trouble.unlink()
    study.submit("retry")
    assert report not in study.jobs()  # it would not wait for those that were just submitted
    study.until_all_ended()
    assert len(study.values()) == 6
    again = {name.rpartition("-")[0] for name, count in study.attempts().items() if count != before.get(name, 1)}
    assert again == {"pretrain-spark-a-s0"}
    assert len(attempts(study.out / "report")) == 1
    assert study.verb("status") == 0
    assert "7 finished" in capsys.readouterr().out


def test_two_tasks_on_two_nodes_train_together(study: SlurmStudy) -> None:
    """A real pre-training, in two processes that find each other by the job's id."""
    rng = np.random.default_rng(0)
    (study.folder / "photos").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(study.folder / "photos" / f"{index}.png")
    tiny = {
        "data.root": "{data}", "data.input_size": [64, 64], "data.workers": 0, "decoder.width": 32, "train.batch": 4,
        "train.epochs": 1, "train.warmup_epochs": 0, "model.name": "resnet18", "model.drop_path": 0,
    }
    spark = {"pretrain": "configs/pretrain/resnet18_demo.yaml", "settings": tiny}
    study.change(models=["resnet18"], data=str(study.folder / "photos"), initialisations={"spark": spark}, tasks={},
                 overrides={"two": {"resources": {"nodes": 2}}})
    study.submit()
    (job,) = study.jobs()
    assert "NumNodes=2" in study.cluster.run("scontrol", "show", "job", job)
    study.until_all_ended(400)
    folder = study.folder_of("pretrain-spark-resnet18")
    assert "2 processes of 2 images each" in (folder / "output.log").read_text()
    assert (folder / "encoder.safetensors").is_file()
    assert (folder / "finished.json").is_file()


def test_all_processes_begin_again_if_the_result_is_gone(study: SlurmStudy) -> None:
    study.content["tasks"]["count"]["task"] += "Distributed"
    # The second process has to be there before the first is done, which here does not wait for it.
    two = {"resources": {"nodes": 2}, "settings": {"pause": 5}}
    study.change(models=["a"], initialisations={"scratch": {}}, overrides={"two": two})
    study.submit()
    study.until_all_ended()
    folder = study.folder_of("count")
    for name in ("value.json", "count.json", "rank1.json"):
        (folder / name).unlink()
    study.submit()
    study.until_all_ended()
    assert (folder / "value.json").is_file()
    assert (folder / "rank1.json").is_file()


def test_cancel_leaves_nothing_running(study: SlurmStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study.change(overrides={"slow": {"settings": {"pause": 1, "steps": 1000}}})
    study.submit()
    wait_until(lambda: len(list(study.out.glob("*/metrics.jsonl"))) == 4)
    study.verb("status")
    table = capsys.readouterr().out
    assert "4 running, 2 queued" in table
    assert "Dependency" in table
    assert study.verb("cancel") == 0
    study.until_all_ended(30)
    wait_until(lambda: not _processes_with(str(study.out)), 10)
    assert not [node for node in study.graph() if read_finished(node)]


@pytest.mark.parametrize("number", ["TERM", "USR2"])
def test_a_signal_to_the_whole_job_puts_it_back(study: SlurmStudy, number: str) -> None:
    """As `scancel --full` and some clusters' preemption send it: to the batch script and srun, too."""
    study.change(models=["a"], initialisations={"scratch": {}},
                 overrides={"slow": {"settings": {"pause": 1, "steps": STEPS}}})
    study.submit()
    (job,) = study.jobs()
    wait_until(lambda: list(study.out.glob("count-*/metrics.jsonl")))
    study.cluster.run("scancel", "--full", "--signal", number, job)
    study.until_all_ended()
    first, second = attempts(study.folder_of("count"))
    assert first.outcome == "stopped"
    assert second.outcome == "finished"
    steps = [json.loads(line)["step"] for line in (study.folder_of("count") / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))


def test_scancel_is_no_request_to_begin_again(study: SlurmStudy) -> None:
    study.change(models=["a"], initialisations={"scratch": {}},
                 overrides={"slow": {"settings": {"pause": 0.5, "steps": 1000}}})
    study.submit()
    (job,) = study.jobs()
    wait_until(lambda: list(study.out.glob("count-*/metrics.jsonl")))
    study.cluster.run("scancel", job)
    study.until_all_ended(30)
    (attempt,) = attempts(study.folder_of("count"))
    assert attempt.outcome == "stopped"


def test_while_the_controller_is_away(study: SlurmStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """What runs goes on, and is not called lost; nothing is submitted twice, then or afterwards."""
    study.change(models=["a"], overrides={"slow": {"settings": {"pause": 4, "steps": STEPS}}})
    study.submit()
    wait_until(lambda: len(list(study.out.glob("*/metrics.jsonl"))) == 2)
    before = study.jobs()
    study.cluster.stop_controller()
    try:
        capsys.readouterr()
        assert study.verb("status") == 0
        table = " ".join(capsys.readouterr().out.split())
        assert "3 unknown" in table
        assert "squeue failed: " in table
        for verb in ("submit", "retry"):
            assert study.verb(verb, "--cluster", str(study.cluster_file)) == 2
            assert "squeue failed: " in capsys.readouterr().err
    finally:
        study.cluster.start_controller()
    study.submit()
    assert "0 jobs submitted" in capsys.readouterr().out
    assert set(study.jobs()) <= set(before)
    study.until_all_ended()
    assert set(study.attempts().values()) == {1}
    assert len(study.values()) == 3


def test_a_controller_that_restarts_during_a_submission(
    study: SlurmStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It took a job, but its answer was lost: that job is taken back when its node is submitted again."""
    programs = study.folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >/dev/null\necho away >&2\nexit 1\n')
    (programs / "sbatch").chmod(0o755)
    study.change(models=["a"], initialisations={"scratch": {}})
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(programs), prepend=os.pathsep)
        assert study.verb("submit", "--cluster", str(study.cluster_file)) == 2
    (stray,) = study.jobs()
    study.submit()
    assert f"taken back: {stray}, " in capsys.readouterr().err
    study.until_all_ended()
    assert set(study.attempts().values()) == {1}
    assert len(study.values()) == 1


def test_an_edited_study_leaves_the_jobs_of_before_whole(
    study: SlurmStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    """They know their node when they begin again, and are cancelled with the others."""
    study.change(models=["a"], initialisations={"scratch": {}},
                 overrides={"slow": {"settings": {"pause": 0.5, "steps": 1000}}})
    study.submit()
    (job,) = study.jobs()
    wait_until(lambda: list(study.out.glob("*-s0-*/metrics.jsonl")))
    before = study.folder_of("count-scratch-a-s0")
    study.change(seeds=[1])
    study.submit()
    wait_until(lambda: len(list(study.out.glob("*/metrics.jsonl"))) == 2)
    study.cluster.run("scontrol", "requeue", job)
    wait_until(lambda: len(attempts(before)) == 2)
    assert set(study.jobs()) > {job}
    assert study.verb("cancel") == 0
    assert before.name in capsys.readouterr().out
    study.until_all_ended(30)


def test_what_dies_without_a_word_is_noticed(study: SlurmStudy, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it begins, for a mistake in the cluster file, or killed; `retry` need not wait until files are stale."""
    slow = {"settings": {"pause": 0.5, "steps": 1000}}
    study.change(models=["a"], initialisations={"scratch": {}}, overrides={"slow": slow})
    good = study.cluster_file.read_text()
    study.cluster_file.write_text(good.replace("setup:", "setup:\n- echo no such module; exit 3\n"))
    study.submit()
    study.until_all_ended()
    assert study.verb("status") == 1
    table = " ".join(capsys.readouterr().out.split())
    assert "failed (NonZeroExitCode), and never began" in table
    assert "_0_log.out: no such module" in table

    study.cluster_file.write_text(good)
    study.submit("retry")
    wait_until(lambda: list(study.out.glob("*/metrics.jsonl")))
    host = study.host_of("count")
    for process in _processes_with(str(study.out)):
        os.kill(process, signal.SIGKILL)
    study.until_all_ended()
    assert study.verb("status") == 1
    assert "ended without a word; job" in " ".join(capsys.readouterr().out.split())
    study.change(overrides={"slow": slow, "elsewhere": {"resources": {"slurm": {"exclude": host}}}})
    study.submit("retry")
    wait_until(lambda: study.host_of("count") != host)
    assert study.verb("cancel") == 0


def test_a_study_inside_the_checkout(study: SlurmStudy) -> None:
    """Jobs run in a copy of the code, but what they read, make and write is where it was, ignored by git or not."""
    checkout = study.folder / "checkout"
    for name in subprocess.check_output(["git", "-C", ROOT, "ls-files"], text=True).splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / "photos").mkdir()
    (checkout / "photos" / "1.png").touch()
    study.change(
        models=["a"], out="experiments/trial", data="made/here", prepare="cp -r photos {data}",
        overrides={"made": {"when": {"task": "pretrain"}, "settings": {"root": "{data}"}},
                   "there": {"when": {"task": "count"}, "settings": {"root": "photos"}}},
    )
    (checkout / "made").mkdir()
    command = "import sys; from eval_suite.cli import main; sys.exit(main())"
    subprocess.run(
        [sys.executable, "-c", command, "study", "submit", study.file, "--cluster", study.cluster_file],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True,
    )
    study.until_all_ended()
    out = checkout / "experiments" / "trial"
    assert len(list(out.glob("*/value.json"))) == 3
    assert (checkout / "made" / "here" / "1.png").is_file()
    (code,) = (out / "slurm").glob("code-*")
    assert (code / "eval_suite").is_dir()
    assert (code / "photos").is_symlink()
    assert not any((code / name).exists() and not (code / name).is_symlink() for name in ("experiments", "made"))


def _processes_with(argument: str) -> list[int]:
    """Return the processes, of all nodes, whose command line mentions something."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if argument in command and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found
