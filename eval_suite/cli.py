"""`spark-eval <verb>`: evaluate checkpoints and report the results."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import NamedTuple

import eval_suite.tasks
from d2_projects.engine.run import main as detect
from d2_projects.train_net import add_arguments as add_detect_arguments
from eval_suite.study.cli import add_verbs as add_study_verbs
from spark.config.arguments import Parser, a_name, a_path, add_trust
from spark.errors import exits_cleanly
from spark.utils.version import __version__


class Verb(NamedTuple):
    """A verb of classification: the module in `eval_suite.tasks` with a function of that name, a line for people."""

    task: str
    purpose: str


CLASSIFICATION = {
    "finetune": Verb("imagenet_finetune", "fine-tune a classifier on labeled images, all of them or few"),
    "probe": Verb("linear_probe", "train linear classifiers on a frozen encoder's features"),
    "knn": Verb("knn", "classify by nearest neighbours in a frozen encoder's features"),
}
GOES_ON = (
    "Alone or under torchrun, SIGTERM and SIGUSR1 finish the step, save and exit with 75: start it again to go on."
)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; each imports its task only when asked for, so Detectron2 is needed by `detect` alone."""
    options = _parser().parse_args(arguments)
    if options.verb in CLASSIFICATION:
        return _classify(options)
    if options.verb == "detect":
        return detect([options.recipe, *options.overrides], options.num_gpus)
    elif options.verb == "study":
        from eval_suite.study.verbs import run as study

        return study(options)
    elif options.verb == "diff":
        from eval_suite.diff import diff

        return diff(options.first, options.second, options.trust)
    else:
        from eval_suite.reporting.write import write_report

        write_report(options.runs, options.out, options.trust)
    return 0


def _classify(options: argparse.Namespace) -> int:
    task = importlib.import_module(f"{eval_suite.tasks.__name__}.{CLASSIFICATION[options.verb].task}")
    path = getattr(task, options.verb)(options.recipe, options.overrides)
    if path:  # the first of several processes speaks for all
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("spark-eval", description="Evaluate checkpoints and report the results.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, purpose) in CLASSIFICATION.items():
        verb = verbs.add_parser(name, help=purpose, description=purpose, epilog=GOES_ON)
        verb.add_argument("recipe", type=a_name, metavar="RECIPE", help="a file under configs/, or your own")
        verb.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from it")
    purpose = "train and evaluate Mask R-CNN on a COCO-format data set (needs Detectron2)"
    add_detect_arguments(verbs.add_parser("detect", help=purpose, description=purpose))
    add_study_verbs(verbs.add_parser("study", help="plan, run or submit a whole study, and follow it"))
    report = verbs.add_parser("report", help="collect results into tables and a page")
    report.add_argument("runs", metavar="RUNS", nargs="+", type=a_path, help="folders that hold runs")
    report.add_argument("--out", type=a_path, help="folder to write to (default: RUNS/report, if there is one folder)")
    add_trust(report, "a record")
    diff = verbs.add_parser("diff", help="show every setting in which two runs or recipes differ",
                            epilog="Exits with 0 if they are the same, with 1 if they differ.")
    diff.add_argument("first", type=a_name, metavar="A", help="a run's folder, or a recipe")
    diff.add_argument("second", type=a_name, metavar="B", help="likewise")
    add_trust(diff, "a run")
    return parser
