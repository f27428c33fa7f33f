"""A study file becomes a graph; what a node is follows from what determines its result, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_folder import QUICK, StudyFolder

from eval_suite.study.cluster import load_cluster
from eval_suite.study.config import load_study
from eval_suite.study.graph import load_graph, missing_data
from spark.errors import UserError


def names(study: StudyFolder) -> set[str]:
    """Return the names of all nodes."""
    return set(study.graph().nodes)


def starting(study: StudyFolder, prefix: str) -> set[str]:
    """Return the names that begin so."""
    return {name for name in names(study) if name.startswith(prefix)}


def test_evaluations_build_upon_the_pretraining_of_their_model(study: StudyFolder) -> None:
    study.change(report=True)
    graph = study.graph()
    assert len(graph) == 2 + 4 + 1  # pre-trainings, evaluations, report
    for node in graph:
        if node.labels.get("init") == "spark" and node.labels["task"] == "count":
            (above,) = node.upstream
            assert above.startswith(f"pretrain-spark-{node.labels['model']}")
            assert node.work.init == str(study.out / above)
    assert list(graph)[-1].name == "report"


def test_scratch_knows_no_budgets(study: StudyFolder) -> None:
    study.change(models=["a"], budgets={"short": {"steps": 2}, "long": {"steps": 5}})
    assert len(starting(study, "pretrain-spark-a")) == 2
    assert len(starting(study, "count-spark-a")) == 2
    assert len(starting(study, "count-scratch-a")) == 1


def test_only_what_a_change_concerns_becomes_another_node(study: StudyFolder) -> None:
    before = names(study)
    spark = study.content["initialisations"]["spark"]
    spark["settings"] = {"model": "{model}", "steps": 4}
    study.change()
    changed = before ^ names(study)
    assert {name.rpartition("-")[0] for name in changed} == {
        "pretrain-spark-a-s0", "pretrain-spark-b-s0", "count-spark-a-s0", "count-spark-b-s0"}


@pytest.mark.parametrize("settings", [{"workers": 7}, {"pause": 1}])
def test_what_does_not_determine_the_result_changes_nothing(study: StudyFolder, settings: dict[str, Any]) -> None:
    before = names(study)
    study.change(overrides={"fast": {"settings": settings}}, out=str(study.folder / "elsewhere"))
    assert names(study) == before


def test_data_count_by_content_and_not_by_place(study: StudyFolder) -> None:
    def put(folder: str, *files: str) -> set[str]:
        root = study.folder / folder
        root.mkdir()
        for file in files:
            (root / file).touch()
        study.change(overrides={"data": {"settings": {"root": str(root)}}})
        return names(study)

    assert put("one", "x", "y") == put("two", "x", "y") != put("three", "x")


def test_shards_are_named_by_a_pattern(study: StudyFolder) -> None:
    """Known by names and sizes; how many images they hold only the study can say."""
    for number in range(3):
        (study.folder / f"train-{number:03d}.tar").write_bytes(b"x" * number)
    pattern = str(study.folder / "train-{000..002}.tar")
    study.change(overrides={"data": {"settings": {"root": pattern}}})
    graph = study.graph()
    assert missing_data(graph) == []
    assert {study.folder / f"train-{number:03d}.tar" for number in range(3)} < set(graph.data())
    before = names(study)
    (study.folder / "train-002.tar").write_bytes(b"longer")
    assert not before & names(study)
    (study.folder / "train-001.tar").unlink()
    assert missing_data(study.graph()) == [pattern]


def test_an_override_concerns_what_it_names(study: StudyFolder) -> None:
    study.change(overrides={"long": {"when": {"model": "b", "task": "count"}, "settings": {"steps": 9}}})
    lengths = {node.name.rpartition("-")[0]: node.length for node in study.graph()}
    assert {name for name, length in lengths.items() if length == 9} == {"count-scratch-b-s0", "count-spark-b-s0"}


def test_exclude_and_include(study: StudyFolder) -> None:
    study.change(exclude=[{"model": "b"}], include=[{"model": "c", "init": "scratch", "seed": [5, 6]}])
    assert {name.rpartition("-")[0] for name in names(study)} == {
        "pretrain-spark-a-s0", "count-scratch-a-s0", "count-spark-a-s0", "count-scratch-c-s5", "count-scratch-c-s6"}


def test_one_pretraining_can_serve_all_seeds(study: StudyFolder) -> None:
    study.change(models=["a"], seeds=[0, 1, 2])
    assert len(starting(study, "pretrain")) == 3
    study.content["initialisations"]["spark"]["seed"] = 0
    study.change()
    assert len(starting(study, "pretrain")) == 1
    assert len(starting(study, "count-spark")) == 3


def test_data_that_a_command_makes_need_not_be_there(study: StudyFolder) -> None:
    made = str(study.folder / "made")
    root = {"root": {"settings": {"root": "{data}/pool"}}}
    study.change(data=made, overrides=root)
    assert missing_data(study.graph()) == [f"{made}/pool"]
    study.change(prepare="make {data}")
    graph = study.graph()
    assert missing_data(graph) == []
    assert all(node.upstream for node in graph if node.labels["task"] != "data")


def test_a_saved_graph_is_the_same_graph(study: StudyFolder) -> None:
    graph = study.graph()
    graph.save()
    assert load_graph(study.out) == graph


@pytest.mark.parametrize(("change", "message"), [
    ({"model": ["a"]}, "unknown key 'model'. Did you mean models"),
    ({"tasks": {"count": {"task": QUICK, "recipes": "x"}}}, "tasks.count: unknown key 'recipes'. Did you mean recipe"),
    ({"tasks": {"count": {"task": QUICK}}}, "tasks.count.recipe is required"),
    ({"tasks": {"count": {"task": "finetun", "recipe": "x"}}}, "no task 'finetun'"),
    ({"overrides": {"o": {"wen": {}}}}, "overrides.o: unknown key 'wen'. Did you mean when"),
    ({"overrides": {"o": {"when": {"models": "a"}}}}, "unknown axis 'models'. Did you mean model"),
    ({"exclude": [{"model": "aa"}]}, "exclude[0]: model has no value 'aa'. Did you mean a"),
    ({"exclude": [{"init": ["scratch", "spark"]}]}, "no point is left"),
    ({"models": []}, "'models' is required and empty"),
    ({"overrides": {"o": {"resources": {"gpu": 1}}}}, "unknown key 'gpu'"),
    ({"overrides": {"o": {"resources": {"minutes": 0}}}}, "minutes=0 must be at least 1"),
    ({"overrides": {"o": {"when": {"task": "count"}, "resources": {"nodes": 2}}}}, "runs in one process"),
    ({"prepare": "make"}, "needs 'data'"),
])
def test_mistakes_are_named_with_the_nearest_right_word(
    study: StudyFolder, change: dict[str, Any], message: str
) -> None:
    study.change(**change)
    with pytest.raises(UserError) as error:
        study.graph()
    assert message in str(error.value)


def test_clusters_are_found_by_name() -> None:
    assert load_cluster("slurm").scheduler == "slurm"
    with pytest.raises(UserError, match=r"no cluster file 'slrum', nor .* Did you mean slurm"):
        load_cluster("slrum")


def test_parts_of_a_study_are_changed_in_its_file() -> None:
    with pytest.raises(UserError, match=r"tasks\.detect\.recipe=…: .* is changed in its file"):
        load_study("demo", ["tasks.detect.recipe=other.py"])


def test_studies_are_found_by_name() -> None:
    with pytest.raises(UserError, match=r"no study 'dmo' in configs/studies. Did you mean demo"):
        load_study("dmo")


@pytest.mark.parametrize(("text", "message"), [
    ("scheduler: slrum", "Did you mean slurm"),
    ("resources: {node: 1}", "unknown key 'resources.node'"),
    ("tasks: {pretrain: {node: 1}}", "tasks.pretrain: unknown key 'node'. Did you mean nodes"),
    ("tasks: {pretrain: {nodes: 0}}", "tasks.pretrain.nodes=0 must be at least 1"),
    ("resources: {minutes: 2}", "resources.minutes=2 must be longer than signal_seconds=120"),
])
def test_mistakes_in_cluster_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_cluster(str(tmp_path / "cluster.yaml"))
    assert message in str(error.value)


def test_images_are_counted_where_files_are_images(study: StudyFolder) -> None:
    for folder, ending in (("shards", "tar"), ("photos", "jpg")):
        (study.folder / folder).mkdir()
        for number in range(3):
            (study.folder / folder / f"{number}.{ending}").touch()
    found = []
    for folder in ("shards", "photos"):
        study.change(images=100, overrides={"data": {"settings": {"root": str(study.folder / folder)}}})
        found.append({node.images for node in study.graph()})
    assert found == [{100}, {3}]
