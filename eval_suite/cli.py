"""`spark-eval <verb>`: evaluate checkpoints and report the results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
        from eval_suite.tasks.coco_mask_rcnn import run as detect

        print(detect(options.recipe, options.overrides))
    else:
        from eval_suite.report import write_report

        write_report(options.runs, options.out)
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
    report = verbs.add_parser("report", help="collect results into a table and a page")
    report.add_argument("runs", metavar="RUNS_DIR", type=Path, help="folder that holds the runs")
    report.add_argument("--out", type=Path, help="folder to write to (default: RUNS_DIR/report)")
    return parser
