"""A study of quick tasks in a folder of its own, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import quick_task
import yaml
from quick_task import VALUE

from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.config import load_study
from eval_suite.study.graph import Graph, build_graph

QUICK = f"{quick_task.__file__}:Quick"


class StudyFolder:
    """Two initialisations of two models, by default; `change` writes a study that differs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.file = folder, folder / "runs", folder / "study.yaml"
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"steps": 3}))
        self.content: dict[str, Any] = {
            "out": str(self.out),
            "report": False,  # it takes longer than all the rest
            "models": ["a", "b"],
            "initialisations": {"scratch": {}, "spark": {"pretrain": self.recipe, "task": QUICK}},
            "tasks": {"count": {"task": QUICK, "recipe": self.recipe, "settings": {"model": "{model}"}}},
        }
        self.content["initialisations"]["spark"]["settings"] = {"model": "{model}"}
        self.change()

    @property
    def recipe(self) -> str:
        """The recipe of all nodes."""
        return str(self.folder / "recipe.yaml")

    def change(self, **content: Any) -> Path:
        """Write the study with some keys changed, and return its file."""
        self.content.update(content)
        self.file.write_text(yaml.safe_dump(self.content))
        return self.file

    def graph(self, *overrides: str) -> Graph:
        """Return the study's graph."""
        cluster = ClusterConfig(scheduler="local", resources=Resources(gpus_per_process=0))
        return build_graph(load_study(str(self.file), overrides), cluster)

    def values(self) -> dict[str, int]:
        """Return the results by name of the node, without the end of its name that follows from its settings."""
        return {path.parent.name.rpartition("-")[0]: json.loads(path.read_text())["value"]
                for path in self.out.glob(f"*/{VALUE}")}

    def attempts(self) -> dict[str, int]:
        """Return how often each node was begun."""
        return {path.name: len(list(path.glob("attempts/*.json"))) for path in self.out.glob("*-*")}
