"""`spark-eval <verb>`: evaluate checkpoints and report the results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval_suite.study_cli import add_verbs as add_study_verbs
from spark import __version__
from spark.errors import exits_cleanly


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; each imports its task only when asked for, so Detectron2 is needed by `detect` alone."""
    options = _parser().parse_args(arguments)
    if options.verb == "finetune":
        from eval_suite.tasks.imagenet_finetune import run as finetune

        print(finetune(options.recipe, options.overrides))
    elif options.verb == "detect":
        return _detect(options)
    elif options.verb == "study":
        from eval_suite.study.verbs import run as study

        return study(options)
    else:
        from eval_suite.report import write_report

        write_report(options.runs, options.out)
    return 0


def _detect(options: argparse.Namespace) -> int:
    from d2_projects.demo import recipe_and_overrides
    from eval_suite.tasks.coco_mask_rcnn import run, run_launched
    from spark.signals import EXIT_CODE, PostponedError

    recipe, overrides = recipe_and_overrides([options.recipe, *options.overrides])
    if options.num_gpus > 1:
        return run_launched(recipe, overrides, options.num_gpus)
    try:
        path = run(recipe, overrides)
    except PostponedError as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    if path:  # the first of several processes speaks for all
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("spark-eval", description="Evaluate checkpoints and report the results.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, purpose in (
        ("finetune", "fine-tune a classifier on a folder of images"),
        ("detect", "train and evaluate Mask R-CNN on a COCO-format data set (needs Detectron2)"),
    ):
        verb = verbs.add_parser(name, help=purpose, description=purpose)
        verb.add_argument("recipe", metavar="RECIPE", help="a file under configs/, or your own")
        verb.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from it")
        if name == "detect":
            verb.add_argument("--num-gpus", type=int, default=1, metavar="N",
                              help="processes, started by Detectron2's launch (torchrun works, too); on a machine "
                                   "without GPUs they share its CPUs")
            verb.epilog = ("With data=demo the recipe may be left out. "
                           "Alone or under torchrun, SIGTERM and SIGUSR1 finish the step, save and exit with 75: start "
                           "it again to go on.")
    add_study_verbs(verbs.add_parser("study", help="plan, run or submit a whole study, and follow it"))
    report = verbs.add_parser("report", help="collect results into a table and a page")
    report.add_argument("runs", metavar="RUNS_DIR", type=Path, help="folder that holds the runs")
    report.add_argument("--out", type=Path, help="folder to write to (default: RUNS_DIR/report)")
    return parser
