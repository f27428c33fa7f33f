"""The first and the last node of a study's graph, as tasks: making the data, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from eval_suite.task import Prepared, Task, Work

MAKES = "makes"  # setting of MakeData: the folder that the command makes


class MakeData(Task):
    """A command that makes the data; its recipe is the command itself."""

    name, version, purpose = "data", 1, "make the data that the other nodes read"

    def prepare(self, work: Work) -> Prepared:
        """Return the command as all that decides; where it writes does not."""
        made = str(work.settings[MAKES])
        return Prepared({"command": work.recipe.replace(made, "{data}")}, (), 0)

    def command(self, work: Work) -> list[str]:
        """Return the command's words."""
        return shlex.split(work.recipe)

    def collect(self, work: Work) -> Mapping[str, str] | None:
        """Return where the data lies, if it does."""
        made = Path(work.settings[MAKES])
        return {"data": str(made)} if made.exists() else None


class Report(Task):
    """Tables and page over all that is finished; its recipe is the study's folder."""

    name, version, purpose = "report", 1, "tables, plots and a page of all results"

    def prepare(self, work: Work) -> Prepared:
        """Depend on nothing but what is reported on."""
        return Prepared({}, (), 0)

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval report`."""
        return ["spark-eval", "report", work.recipe, "--out", str(work.out),
                *(word for model in work.trust or () for word in ("--trust", model))]

    def collect(self, work: Work) -> Mapping[str, str] | None:
        """Return the page."""
        page = work.out / "report.html"
        return {"page": str(page)} if page.is_file() else None
