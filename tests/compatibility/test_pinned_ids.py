"""Ids of everything that is shipped, as they were before the code was re-laid: they change when numbers may, only then.

An id that must change (a recipe says something new, a task's version goes up) is changed in `pinned_ids.json`, in the
same commit and with the reason in `CHANGED`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from d2_projects.engine.config import load
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.probe_config import KnnConfig, ProbeConfig
from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.config import load_study
from eval_suite.study.graph import build_graph
from eval_suite.tasks import imagenet_finetune, knn, linear_probe
from spark.config.identity import deciding_hash
from spark.config.recipe import load_recipe
from spark.methods.registry import read_recipe
from spark.utils.provenance import content_hash

PINNED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "pinned_ids.json").read_text())
CHANGED: Mapping[str, str] = {}  # recipe: why its ids are others than in the first version
PLACES = ["out=run", "data.root=images"]


def recipes(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern) if path.name != "__init__.py")
    return sorted(str(path.relative_to(ROOT)) for path in found)


def of_record(task: str, version: int, protocol: Mapping[str, Any]) -> dict[str, str]:
    settings = {**protocol, "dataset": "images"}
    return {"protocol": content_hash({"task": task, "version": version, "protocol": settings})}


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_everything_shipped_is_pinned() -> None:
    shipped = recipes("configs/pretrain/**/*.yaml", "configs/finetune/*.yaml", "configs/probe/*.yaml",
                      "configs/studies/*.yaml", "d2_projects/*mask_rcnn/*.py")
    assert shipped == sorted(PINNED)
    assert CHANGED.keys() <= PINNED.keys()


@pytest.mark.parametrize("recipe", recipes("configs/pretrain/**/*.yaml"))
def test_pretraining(recipe: str) -> None:
    config = read_recipe(recipe, PLACES)
    protocol = deciding_hash(config, config.FREE)
    repeated = deciding_hash(config, config.FREE | {"seed"}, images="images")
    assert {"protocol": protocol, "recipe": repeated} == PINNED[recipe]


@pytest.mark.parametrize("recipe", recipes("configs/finetune/*.yaml"))
def test_finetuning(recipe: str) -> None:
    config = load_recipe(FinetuneConfig, recipe, PLACES)
    task = imagenet_finetune.FEW_SHOT if config.labels.limited else imagenet_finetune.TASK
    assert of_record(task, imagenet_finetune.VERSIONS[task], config.protocol()) == PINNED[recipe]


@pytest.mark.parametrize("recipe", recipes("configs/probe/*.yaml"))
def test_probes(recipe: str) -> None:
    task, schema = (knn, KnnConfig) if "knn" in recipe else (linear_probe, ProbeConfig)
    config = load_recipe(schema, recipe, PLACES)
    assert of_record(task.TASK, task.TASK_VERSION, config.protocol()) == PINNED[recipe]


@pytest.mark.parametrize("recipe", recipes("d2_projects/*mask_rcnn/*.py"))
def test_detection(recipe: str) -> None:
    assert {"protocol": content_hash(load(recipe, []).protocol_text())} == PINNED[recipe]


@pytest.mark.parametrize("study", recipes("configs/studies/*.yaml"))
def test_nodes_of_studies(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is in an example's file is not asked here.
    monkeypatch.setattr("spark.backbones.own_network.source_hash", lambda reference: "source")
    cluster = ClusterConfig(scheduler="local", resources=Resources(gpus_per_process=0))
    graph = build_graph(load_study(study, ["data=nowhere"]), cluster)
    assert {node.name: node.identity for node in graph} == PINNED[study]
