"""The command line `spark-eval study <verb>`; what the verbs do is in `eval_suite.study.verbs`."""

from __future__ import annotations

import argparse

from spark.config.arguments import a_name, number
from spark.config.values import Jobs

FAILED_ONES = "FAILED"


def add_verbs(study: argparse.ArgumentParser) -> None:
    """Describe the verbs to the command line."""
    verbs = study.add_subparsers(dest="study_verb", required=True, metavar="VERB")
    for name, purpose in (
        ("plan", "show the graph, the commands and the estimated cost; write nothing"),
        ("run", "run what is not finished on this machine"),
        ("submit", "submit what is not finished to Slurm"),
        ("status", "show the state of every node"),
        ("cancel", "stop what runs, and take back what waits"),
        ("retry", "start failed and stopped nodes again, and what builds upon them"),
    ):
        verb = verbs.add_parser(name, help=purpose, description=purpose)
        verb.add_argument("study", type=a_name, metavar="STUDY", help="a file, or the name of one in configs/studies")
        if name == "retry":
            verb.add_argument("words", metavar="NODE | key=value", nargs="*",
                              help=f"nodes by name ({FAILED_ONES}, default: all that failed or stopped), and settings")
        else:
            verb.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. data=photos seeds=[0,1]")
        if name in ("plan", "run", "submit", "retry"):
            verb.add_argument(
                "--cluster", type=a_name, metavar="FILE", help="a file, or the name of one in configs/clusters"
            )
        if name in ("run", "retry"):
            verb.add_argument("--jobs", type=number(Jobs), help="nodes at a time; default: as the GPUs allow, or 1")
            verb.add_argument("--gpus", help="ids, such as 0,1; default: all")
        if name in ("submit", "retry"):
            verb.add_argument("--dry-run", action="store_true", help="print every sbatch script; submit nothing")
        if name == "status":
            verb.add_argument("--watch", action="store_true", help="refresh until all has ended, or Ctrl-C")
