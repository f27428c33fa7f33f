"""Train and evaluate a model that a recipe describes:

    python d2_projects/train_net.py RECIPE [key=value …] [--num-gpus N]
    torchrun --nproc-per-node N d2_projects/train_net.py RECIPE [key=value …]

`spark-eval detect` does the same, with the same arguments; this is the name that Detectron2's projects give it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from d2_projects.engine.run import main as run
from spark.config.arguments import Parser, a_name, number
from spark.config.values import Jobs
from spark.errors import exits_cleanly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a run to a command line."""
    parser.add_argument("recipe", type=a_name, metavar="RECIPE", help="a file under d2_projects/, or your own")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that differ from it")
    parser.add_argument("--num-gpus", type=number(Jobs), default=1, metavar="N",
                        help="processes, started by Detectron2's launch (torchrun works, too); on a machine without "
                             "GPUs they share its CPUs")
    parser.epilog = ("With data=demo the recipe may be left out. Alone or under torchrun, SIGTERM and SIGUSR1 finish "
                     "the step, save and exit with 75: start it again to go on.")


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, and run."""
    parser = Parser(description="Train and evaluate a model that a recipe describes.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return run([options.recipe, *options.overrides], options.num_gpus)


if __name__ == "__main__":
    sys.exit(main())
