"""No setting of a batch script is run by the shell that reads the script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.graph import Graph
from eval_suite.study.launch.slurm import Slurm
from spark.errors import UserError

BAD = ["$(touch executed)", "`touch executed`", "a; touch executed", "a\ntouch executed", "a'b", 'a"b', "a>b", "a\\b"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["partition", "account", "qos", "constraint", "value", "key"])
def test_values_that_would_reach_the_shell_are_refused(bad: str, place: str) -> None:
    given: dict[str, Any] = {place: bad}
    if place in ("value", "key"):
        given = {"resources": Resources(slurm={"comment": bad} if place == "value" else {bad: 1})}
    problems = ClusterConfig(**given).problems()
    assert any("which batch scripts would run" in problem for problem in problems)


@pytest.mark.parametrize("good", ["[rack1|rack2]", "a100&ib", "gpu:a100:4", "me@there.org", "my comment", 3, True])
def test_usual_values_are_taken(good: Any) -> None:
    assert ClusterConfig(resources=Resources(slurm={"any-option": good})).problems() == []


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_study_does_not_lie_where_the_shell_would_run_its_name(bad: str, dry_run: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which batch scripts would run"):
        Slurm(ClusterConfig(), dry_run).start(Graph(tmp_path / bad, {}), [])
    assert not list(tmp_path.iterdir())
