"""A task that takes no time: it counts, saves after each step, goes on where it was, and fails when told to.

Its result is a sum that every step, the seed and what it begins with enter, so it tells whether a step was lost.
Run as a program, it does the work; imported, it is the task of a study.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

COUNT, VALUE, ENVIRONMENT, TROUBLE = "count.json", "value.json", "environment.json", "trouble"
HEARD_NOTHING = "heard_nothing"  # left by a run whose setting `deaf` lets it, once, ignore that it is asked to stop
ASKED = "asked to stop"


def work(arguments: list[str]) -> int:
    """Count; return 75 if a signal came, 3 if the file that `trouble` names is there."""
    given = dict(argument.split("=", 1) for argument in arguments)
    out, stop = Path(given["out"]), []
    (out / ENVIRONMENT).write_text(json.dumps(dict(os.environ)))
    if "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK")
        (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps({name: os.environ[name] for name in names}))
        if os.environ["RANK"] != "0":
            return 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: (stop.append(number), print(ASKED, flush=True)))
    if not Path(given.get("root", ".")).is_dir():
        print(f"error: there are no images in {given['root']}")
        return 3
    if Path(given.get(TROUBLE, "nowhere")).exists():
        print("counting\nerror: told to fail")
        return 3
    init = Path(given.get("init", "scratch"))
    start = json.loads((init / VALUE).read_text())["value"] if init.is_dir() else 0
    state = json.loads((out / COUNT).read_text()) if (out / COUNT).is_file() else {"step": 0, "value": start}
    while state["step"] < int(given.get("steps", "3")):
        if state["step"] == 1 and given.get("deaf") and not (out / HEARD_NOTHING).exists():
            (out / HEARD_NOTHING).touch()
            while True:  # as a long evaluation does not look whether it was asked to stop
                time.sleep(1)
        if stop:
            return 75
        time.sleep(float(given.get("pause", "0")))
        state = {"step": state["step"] + 1, "value": state["value"] * 3 % 1009 + int(given["seed"]) + state["step"]}
        (out / ".count").write_text(json.dumps(state))
        os.replace(out / ".count", out / COUNT)
        with open(out / "metrics.jsonl", "a") as log:
            log.write(json.dumps({"step": state["step"], "epoch": state["step"], "loss": 1 / state["step"]}) + "\n")
    (out / VALUE).write_text(json.dumps({"value": state["value"]}))
    return 0


if __name__ == "__main__":
    sys.exit(work(sys.argv[1:]))

import yaml  # noqa: E402 (the program above does without, and starts sooner)

from eval_suite.task import Cost, Prepared, Task, Work  # noqa: E402
from spark.errors import UserError  # noqa: E402

FREE = ("pause", TROUBLE, "workers", "deaf")  # settings that do not decide about the result


class Quick(Task):
    """Counts."""

    name, version, purpose = "quick", 1, "count"

    def prepare(self, work: Work) -> Prepared:
        """The pause between two steps does not decide about the result, nor does whether it fails."""
        settings = {**yaml.safe_load(Path(work.recipe).read_text()), **work.settings, "seed": work.seed}
        root = [Path(settings.pop("root"))] if "root" in settings else []
        deciding = {key: value for key, value in settings.items() if key not in FREE}
        return Prepared(deciding, tuple(root), int(settings["steps"]))

    def command(self, work: Work) -> list[str]:
        """Return this file as a program, with all settings."""
        recipe = yaml.safe_load(Path(work.recipe).read_text())
        return ["python", __file__, *(f"{key}={value}" for key, value in recipe.items()), *work.overrides()]

    def collect(self, work: Work) -> dict[str, str] | None:
        """Return the sum."""
        path = work.out / VALUE
        return {"value": str(json.loads(path.read_text())["value"])} if path.is_file() else None

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """A known number, to test sums of costs with."""
        return Cost(3600e12, 10**9, "counted") if images else None


class QuickDistributed(Quick):
    """Says of each process which one it is; the first counts."""

    distributed = True


class QuickEmpty(Quick):
    """Never has a result."""

    def collect(self, work: Work) -> dict[str, str] | None:
        """Return nothing."""
        return None


class QuickDamaged(Quick):
    """Cannot read its result."""

    def collect(self, work: Work) -> dict[str, str] | None:
        """Refuse."""
        if super().collect(work) is None:
            return None
        raise UserError("value.json is no record")
