"""What `study plan` and `submit --dry-run` say before anything runs."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from study_folder import StudyFolder

from eval_suite.cli import main
from eval_suite.study.cluster import ClusterConfig, Device, Resources, load_cluster
from eval_suite.study.config import load_study
from eval_suite.study.graph import Node, build_graph
from eval_suite.study.launch.snapshot import snapshot_path, source_root, take_snapshot
from eval_suite.study.plan import estimate
from eval_suite.task import Cost, Task
from eval_suite.task_registry import find_task, task_names, tasks_table
from spark.errors import UserError
from spark.utils.files import write_json

GPU = ClusterConfig(device=Device("a GPU", peak_tflops=1.0, utilisation=0.5), resources=Resources(gpus_per_process=2))


def test_hours_from_flops_and_sums(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """A quick task costs 3,600 TFLOP and 1 GB: two hours at half of a TFLOP/s."""
    study.change(images=100)
    graph = build_graph(load_study(str(study.file)), GPU)
    assert [(entry.hours, entry.basis) for entry in estimate(graph, GPU).values()] == [(2.0, "FLOPs")] * 6
    cluster = study.folder / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"device": {"name": "a GPU", "peak_tflops": 1, "utilisation": 0.5}}))
    assert main(["study", "plan", str(study.file), "--cluster", str(cluster)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"to do: 6 of 6 .* 12\.0 .* 6\.0", said)
    assert "50% of the 1 TFLOP/s of a GPU, an assumption" in said
    assert said.count("quick_task.py steps=3") == 6
    assert not study.out.exists()


def test_runs_that_differ_in_the_seed_alone_are_counted_once(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    monkeypatch.setattr(Node, "cost", lambda node: counted.append(node.name) or Cost(len(counted), 0, "counted"))
    study.change(models=["a"], seeds=[0, 1, 2], overrides={
        "longer": {"when": {"task": "count", "init": "scratch", "seed": 1}, "settings": {"steps": 30}}})
    estimates = estimate(study.graph(), GPU)
    assert len(estimates) == 9
    # The pre-trainings, their evaluations, those from scratch, which have the same settings, and the longer one.
    flops = {name.rpartition("-")[0]: entry.cost.flops for name, entry in estimates.items() if entry.cost}
    assert flops["count-scratch-a-s0"] == flops["count-scratch-a-s2"] != flops["count-scratch-a-s1"]
    assert len(counted) == len(set(flops.values())) <= 4


def test_what_is_not_known_is_not_invented(study: StudyFolder) -> None:
    graph = study.graph()
    assert {(entry.cost, entry.hours) for entry in estimate(graph, ClusterConfig()).values()} == {(None, None)}


def test_a_finished_node_tells_the_time_of_its_like(study: StudyFolder) -> None:
    study.change(models=["a"], seeds=[0, 1], initialisations={"scratch": {}},
                 overrides={"longer": {"when": {"seed": 1}, "settings": {"steps": 30}}})
    graph = build_graph(load_study(str(study.file)), GPU)
    first, second = graph
    write_json(first.folder / "finished.json", {
        "identity": first.identity, "at": 1.0, "seconds": 1800.0, "shown": {}, "command": ""})
    estimates = estimate(graph, GPU)
    assert estimates[first.name].hours == 1.0  # half an hour on two GPUs
    assert estimates[second.name].hours == 10.0  # ten times as long
    assert estimates[second.name].basis == f"measured on {first.name}"


def test_missing_data_is_said(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    study.change(overrides={"data": {"settings": {"root": "/nowhere/images"}}})
    assert main(["study", "plan", str(study.file)]) == 0
    assert "missing: '/nowhere/images'" in capsys.readouterr().out


def test_dry_run_shows_every_script(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no Slurm is installed, too. What waits for the same and asks for the same is one array."""
    cluster = study.folder / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({
        "partition": "gpu", "account": "lab", "max_parallel": 3, "signal_seconds": 90, "setup": ["module load cuda"],
        "resources": {"minutes": 60, "cpus_per_process": 6, "memory_gb": 40, "slurm": {"mail-type": "FAIL"}},
    }))
    study.content["initialisations"]["spark"]["task"] += "Distributed"
    study.change(report=True, overrides={"large": {
        "when": {"model": "b", "task": "pretrain"}, "resources": {"nodes": 2, "processes_per_node": 8}}})
    assert main(["study", "submit", str(study.file), "--cluster", str(cluster), "--dry-run"]) == 0
    _, *scripts = re.split(r"^### job ", capsys.readouterr().out, flags=re.MULTILINE)
    titles = [script.partition("\n")[0] for script in scripts]
    named = {re.sub(r"^\d+: |-[0-9a-f]{8}\b", "", title): script for title, script in zip(titles, scripts, strict=True)}
    assert set(named) == {
        "count-scratch-a-s0, pretrain-spark-a-s0, count-scratch-b-s0", "pretrain-spark-b-s0", "count-spark-a-s0",
        "count-spark-b-s0", "report"}
    first = named["count-scratch-a-s0, pretrain-spark-a-s0, count-scratch-b-s0"]
    for line in ("--array=0-2%3", "--partition=gpu", "--account=lab", "--time=60", "--mem=40GB", "--mail-type=FAIL",
                 "--signal=USR2@90", "--requeue", "--kill-on-invalid-dep=yes", "--gpus-per-node=1"):
        assert f"#SBATCH {line}\n" in first
    assert "\nmodule load cuda\n" in first
    assert "--dependency" not in first
    large = named["pretrain-spark-b-s0"]
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6"):
        assert f"#SBATCH {line}\n" in large
    number = {name: script.partition(":")[0] for name, script in named.items()}
    assert f"--dependency=afterok:{number['pretrain-spark-b-s0']}\n" in named["count-spark-b-s0"]
    assert re.search(r"--dependency=afterok:\d+_1\n", named["count-spark-a-s0"])
    assert "--dependency=afterany:" in named["report"]
    assert "--gpus-per-node" not in named["report"]
    assert not study.out.exists()


def test_dry_run_does_without_the_data(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = study.folder / "cluster.yaml"
    cluster.write_text("scheduler: slurm")
    study.change(overrides={"data": {"settings": {"root": "/nowhere/images"}}})
    assert main(["study", "submit", str(study.file), "--cluster", str(cluster), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.count("### job ") == 3
    assert "missing: '/nowhere/images' is not there yet" in said.err


@pytest.mark.parametrize("verb", ["submit", "retry"])
def test_dry_run_never_runs_anything(study: StudyFolder, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    trouble = study.folder / "trouble"
    trouble.touch()
    study.change(models=["a"], overrides={"bad": {"settings": {"trouble": str(trouble)}}})
    assert main(["study", "run", str(study.file)]) == 1
    begun = study.attempts()
    cluster = study.folder / "cluster.yaml"
    cluster.write_text("scheduler: local")
    assert main(["study", verb, str(study.file), "--cluster", str(cluster), "--dry-run"]) == 2
    assert "--dry-run prints the scripts for Slurm" in capsys.readouterr().err
    assert study.attempts() == begun


def test_retry_of_what_was_submitted_asks_where(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    study.out.mkdir()
    (study.out / "submissions.jsonl").write_text("")
    assert main(["study", "retry", str(study.file)]) == 2
    assert "was submitted to Slurm: pass its --cluster FILE" in capsys.readouterr().err


def test_a_copy_of_the_code_is_whole_and_taken_once(tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "slurm")
    assert copy == snapshot_path(tmp_path / "slurm") == take_snapshot(tmp_path / "slurm")
    for name in ("spark/__init__.py", "eval_suite/cli.py", "configs/studies/demo.yaml"):
        assert (copy / name).read_bytes() == (source_root() / name).read_bytes()
    assert (copy / "CODE_VERSION").read_text()
    assert not (copy / ".git").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "configs/clusters").glob("*.yaml")), ids=lambda file: file.stem)
def test_cluster_files_are_sound(file: Path) -> None:
    cluster = load_cluster(str(file))
    assert cluster.given("pretrain", [], file.stem).gpus >= 1
    assert set(cluster.tasks) <= set(task_names())


@pytest.mark.parametrize("file", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_study_files_are_sound(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe is there, every setting is known, and eight GPUs a machine suffice."""
    monkeypatch.chdir(ROOT)
    text = file.read_text()
    assert all(f"# {word}:" in text for word in ("Reproduces", "Command", "Expected", "Cost"))
    graph = build_graph(load_study(file.stem), load_cluster("slurm_8gpu"))
    assert str(graph.out) == f"runs/{file.stem}"
    assert any(node.upstream and node.wants_all for node in graph)
    study = load_study(file.stem)
    absolute = dataclasses.replace(study, data=os.path.abspath(study.data))
    assert list(build_graph(absolute, load_cluster("slurm_8gpu")).nodes) == list(graph.nodes)  # as submit has it


@pytest.mark.parametrize("name", task_names())
def test_each_task_is_a_class_in_a_file_of_its_name(name: str) -> None:
    task = find_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert f"| `{name}` | {task.version} |" in tasks_table()


@pytest.mark.parametrize(("name", "message"), [
    ("imagenet_finetuning", "Did you mean imagenet_finetune"),
    ("nowhere.py:Quick", "cannot be imported"),
    (f"{ROOT}/tests/eval_suite/quick_task.py:Quik", "no class Quik"),
])
def test_unknown_tasks(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_task(name)


@pytest.mark.parametrize("statement", ["raise ValueError(3)", "raise SystemExit(3)"])
def test_a_task_whose_file_fails_is_told(statement: str, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(f"{statement}\n")
    with pytest.raises(UserError, match=r"task.py:Own' cannot be imported: (ValueError|SystemExit): 3"):
        find_task(f"{tmp_path / 'task.py'}:Own")
