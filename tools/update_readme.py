r"""Write results into the README: the demo, the benchmarks' table, the coverage of timm, CIFAR-10, a study, the tasks.

    make demo && python tools/update_readme.py demo [runs/demo]
    python tools/update_readme.py benchmarks
    spark models --verify --missing && python tools/update_readme.py coverage
    spark pretrain configs/pretrain/cifar10.yaml … && spark visualize reconstruct RUN IMAGES --out RUN/visualize \
        && python tools/update_readme.py cifar10 RUN
    spark-eval study run cifar10_cpu data=cifar10 && python tools/update_readme.py study runs/cifar10_cpu
    python tools/update_readme.py tasks

The README shows what runs produced and is never edited by hand between the marks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from eval_suite.task_registry import tasks_table
from spark.benchmark.report import ratio_to
from spark.checks.coverage import coverage_line, read_table
from spark.errors import UserError, exits_cleanly
from spark.runs.metrics import read_metrics
from spark.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "demo_results"
BENCHMARKS = ROOT / "tools" / "benchmarks"


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Rewrite one section of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=("demo", "benchmarks", "coverage", "cifar10", "study", "tasks"))
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/demo"))
    options = parser.parse_args(arguments)
    sections: dict[str, Callable[[], str]] = {
        "demo": lambda: demo_section(options.runs),
        "benchmarks": lambda: benchmark_section(BENCHMARKS),
        "coverage": lambda: coverage_line(read_table()),
        "cifar10": lambda: cifar_section(options.runs),
        "study": lambda: study_section(options.runs),
        "tasks": tasks_table,
    }
    text = sections[options.section]()
    readme = ROOT / "README.md"
    write_text(readme, with_section(readme.read_text(encoding="utf-8"), options.section, text))
    return 0


def demo_section(runs: Path) -> str:
    """Copy table and picture of a finished demo, and return the section that shows them."""
    table = runs / "report" / "table.md"
    pictures = sorted(runs.glob("*/reconstructions/*.png"))  # a study names the folder after recipe and settings
    if not table.is_file() or not pictures:
        raise UserError(f"'{runs}' holds no finished demo; run `make demo` first")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(table, RESULTS / "table.md")
    shutil.copy(pictures[-1], RESULTS / "reconstruction.png")
    picture = (
        "![Each row: what the encoder saw, what the decoder drew around it, the photo]"
        "(tools/demo_results/reconstruction.png)"
    )
    return f"{table.read_text(encoding='utf-8').strip()}\n\n{picture}"


def cifar_section(run: Path) -> str:
    """Copy curve and reconstructions of a finished pre-training on CIFAR-10; return the section that shows them."""
    pictures = {"curve": run / "curve.png", "reconstruction": run / "visualize" / "reconstruct.png"}
    if not (run / "encoder.json").is_file() or not all(picture.is_file() for picture in pictures.values()):
        raise UserError(f"'{run}' holds no finished pre-training with its visualize/reconstruct.png; see --help")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        shutil.copy(picture, RESULTS / f"cifar10_{name}.png")
    log = pd.DataFrame(read_metrics(run)).dropna(subset=["knn"])
    digits = {"epoch": ".0f", "loss": ".3f", "knn": ".1f", "linear": ".1f", "effective_rank": ".1f"}
    titles = ["epoch", "loss", "k-NN in %", "linear probe in %", "effective rank"]
    cells = log[list(digits)].astype(object).where(log.notna(), None)
    table = cells.to_markdown(index=False, headers=titles, floatfmt=tuple(digits.values()), missingval="")
    write_text(RESULTS / "cifar10.md", f"{table}\n")
    return (
        f"{table}\n\n![Loss, learning rate and probes over the epochs](tools/demo_results/cifar10_curve.png)\n\n"
        "![Each row: the photo, what the encoder saw, what the decoder drew, and that with the visible patches pasted]"
        "(tools/demo_results/cifar10_reconstruction.png)"
    )


def study_section(runs: Path) -> str:
    """Copy the table of a finished study and return it."""
    table = runs / "report" / "table.md"
    if not table.is_file():
        raise UserError(f"'{runs}' holds no finished study; run `spark-eval study run cifar10_cpu` first")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(table, RESULTS / "cifar10_study.md")
    return table.read_text(encoding="utf-8").strip()


def benchmark_section(folder: Path) -> str:
    """Return a table with a row per benchmark in the folder."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise UserError(f"'{folder}' holds no benchmark; run `spark bench MODEL --out {folder}` first")
    table = pd.DataFrame(benchmark_row(result) for result in results)
    return table.to_markdown(index=False, disable_numparse=True)


def benchmark_row(result: dict[str, Any]) -> dict[str, str]:
    """Return how much faster the compact engine is than the original's scheme, and than the masked one tuned."""
    work = result["workload"]
    return {
        "model": work["model"],
        "hardware": f"{result['hardware']}, {result['precision']}, batch {work['batch']}",
        "encoder": f"{ratio_to(result, 'original', 'encoder'):.2f}×",
        "whole step": f"{ratio_to(result, 'original', 'step'):.2f}×",
        "encoder, against masked": f"{ratio_to(result, 'masked', 'encoder'):.2f}×",
        "step, against masked": f"{ratio_to(result, 'masked', 'step'):.2f}×",
        "activations": f"{1 / ratio_to(result, 'original', 'activations'):.2f}×",
        "measured": f"{result['date']}, torch {result['environment']['torch']}",
    }


def with_section(readme: str, name: str, text: str) -> str:
    """Put the text between the section's two marks."""
    begin, end = f"<!-- {name}: written by tools/update_readme.py -->", f"<!-- end of {name} -->"
    before, _, rest = readme.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise UserError(f"README.md has lost its marks '{begin}' and '{end}'")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
