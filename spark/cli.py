"""The command line `spark`: pretrain, convert, check, models, bench, bench-data, visualize."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spark.config.arguments import Parser, a_name, a_path, add_trust, number
from spark.config.choices import DEFAULT_METHOD, DEVICES, FORMATS
from spark.config.values import Count, Part, Pixels, Seconds, Seed, Width
from spark.errors import UserError, exits_cleanly
from spark.utils.version import __version__


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and run the verb."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:2] == ["bench", "data"]:  # no model of timm's is called so
        words = ["bench-data", *words[2:]]
    options = _parser().parse_args(words)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="spark", description="Masked pre-training for convolutional networks.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    pretrain = verbs.add_parser(
        "pretrain", help="pre-train a network on a folder of images",
        epilog="SIGTERM and SIGUSR1 finish the step, save and exit with 75: start it again to go on.",
    )
    pretrain.add_argument(
        "recipe", type=a_name, metavar="RECIPE", help="a YAML file such as configs/pretrain/resnet50.yaml"
    )
    pretrain.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=photos out=runs/a")
    pretrain.add_argument("--dry-run", action="store_true", help="print steps, time, memory, GPU-hours; write nothing")
    pretrain.set_defaults(run=_pretrain)

    convert = verbs.add_parser("convert", help="convert a checkpoint, explain every key, prove the result")
    convert.add_argument("source", type=a_path, metavar="SRC")
    convert.add_argument(
        "destination", type=a_path, metavar="DST", help="a folder (timm), .pkl (detectron2), else .pth or .safetensors"
    )
    convert.add_argument("--to", choices=FORMATS, required=True)
    convert.add_argument("--verbose", action="store_true", help="print what became of every tensor")
    convert.add_argument("--model", type=a_name, help="timm name, where the checkpoint does not tell")
    convert.add_argument(
        "--method", type=a_name, help="how the weights were trained, e.g. supervised, where nothing tells"
    )
    convert.add_argument("--ema", action="store_true", help="take the weights' moving average, where there is one")
    convert.set_defaults(run=_convert)

    check = verbs.add_parser("check", help="prove that a model is converted to sparse convolution correctly")
    check.add_argument("model", type=a_name, metavar="MODEL", help="timm name")
    check.add_argument(
        "--engine", type=a_name, help="compact, masked or auto; default: every engine that takes the model"
    )
    check.add_argument(
        "--input-size", type=number(Pixels), nargs="+", default=[224], metavar="PIXELS",
        help="of the costs: height [width]"
    )
    check.add_argument("--method", type=a_name, default=DEFAULT_METHOD, help="to pre-train it by; default: %(default)s")
    check.set_defaults(run=_check)

    models = verbs.add_parser("models", help="list timm's convolutional models with their recorded verdicts")
    models.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="e.g. 'resnet*'; default: all")
    models.add_argument("--verify", action="store_true", help="check those that match, and record the verdicts")
    models.add_argument("--missing", action="store_true", help="with --verify: only those without a verdict")
    models.add_argument("--table", type=a_path, help="another CSV file than the package's own")
    models.set_defaults(run=_models)

    bench = verbs.add_parser("bench", help="time a training step in each way that its method can compute it")
    bench.add_argument("model", type=a_name, metavar="MODEL", help="timm name")
    bench.add_argument("--batch", type=number(Count), default=16)
    bench.add_argument("--input-size", type=number(Pixels), nargs="+", metavar="PIXELS", help="height [width]")
    bench.add_argument("--mask-ratio", type=number(Part))
    bench.add_argument("--decoder-width", type=number(Width))
    bench.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    bench.add_argument("--device", choices=DEVICES, default="auto")
    bench.add_argument("--rounds", type=number(Count), default=5)
    bench.add_argument("--compile", action="store_true", help="time the compact engine under torch.compile too")
    bench.add_argument(
        "--ratios", type=number(Part), nargs="*", default=[], help="more mask ratios, for the encoder alone"
    )
    bench.add_argument("--out", type=a_path, default=Path("runs/bench"), help="folder for JSON, Markdown and chart")
    bench.add_argument("--method", type=a_name, default=DEFAULT_METHOD, help="whose step to time; default: %(default)s")
    bench.set_defaults(run=_bench)

    bench_data = verbs.add_parser("bench-data", help="time a recipe's loader alone: images, decoding, augmentation")
    bench_data.add_argument("recipe", type=a_name, metavar="RECIPE", help="as for pretrain")
    bench_data.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=photos data.workers=4")
    bench_data.add_argument(
        "--seconds", type=number(Seconds), default=20.0, help="to measure for; default: %(default)s"
    )
    bench_data.set_defaults(run=_bench_data)

    _add_visualize(verbs.add_parser("visualize", help="draw what a model reconstructs, or how mask patterns vanish"))
    return parser


def _add_visualize(visualize: argparse.ArgumentParser) -> None:
    drawings = visualize.add_subparsers(required=True, metavar="WHAT")
    reconstruct = drawings.add_parser("reconstruct", help="images, masked and drawn again: a PNG and a page")
    reconstruct.add_argument(
        "checkpoint", type=a_path, metavar="CKPT", help="a run's folder, or its checkpoints/last.pt"
    )
    reconstruct.add_argument(
        "images", type=a_path, nargs="+", metavar="IMAGE", help="a file, or a folder (eight of its)"
    )
    reconstruct.add_argument("--seeds", type=number(Seed), nargs="+", default=[0], help="of the masks; default: 0")
    reconstruct.add_argument("--mask-ratios", type=number(Part), nargs="+", default=[], help="default: the training's")
    reconstruct.add_argument("--out", type=a_path, default=Path("runs/visualize"), help="folder; default: %(default)s")
    reconstruct.add_argument("--device", choices=DEVICES, default="auto")
    add_trust(reconstruct, "the checkpoint")
    reconstruct.set_defaults(run=_reconstruct)

    vanishing = drawings.add_parser("vanishing", help="dense convolution dissolves a mask pattern, sparse keeps it")
    vanishing.add_argument("model", type=a_name, metavar="MODEL", help="timm name")
    vanishing.add_argument("image", type=a_path, metavar="IMAGE")
    vanishing.add_argument(
        "--input-size", type=number(Pixels), default=224, metavar="PIXELS", help="rounded to whole patches"
    )
    vanishing.add_argument("--mask-ratio", type=number(Part), default=0.6)
    vanishing.add_argument("--seed", type=number(Seed), default=0)
    vanishing.add_argument("--engine", type=a_name, default="auto", help="compact, masked or auto")
    vanishing.add_argument("--out", type=a_path, default=Path("runs/visualize"), help="folder; default: %(default)s")
    vanishing.set_defaults(run=_vanishing)


def _pretrain(options: argparse.Namespace) -> int:
    from spark.methods.registry import read_recipe, written_beside_preset

    config = read_recipe(options.recipe, options.overrides)
    written = written_beside_preset(options.recipe, options.overrides)
    if options.dry_run:
        from spark.training.dry_run import dry_run

        if report := dry_run(config, written):
            print(report)
        return 0
    from spark.training.run import pretrain  # not sooner: a mistake in a recipe is told before torch is imported

    pretrain(config, written)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from spark.formats.convert import convert

    convert(options.source, options.destination, options.to, options.model, options.method, options.verbose,
            options.ema)
    return 0


def _check(options: argparse.Namespace) -> int:
    from spark.checks.report import check

    check(options.model, options.engine, _input_size(options.input_size), options.method)
    return 0


def _models(options: argparse.Namespace) -> int:
    from spark.checks import coverage

    table = options.table or coverage.TABLE
    names = coverage.matching(options.pattern)
    if options.missing and not options.verify:
        raise UserError("--missing says what to verify; pass --verify too")
    if options.table and not (options.verify or table.is_file()):
        raise UserError(f"table '{table}' does not exist; --verify makes it")
    if options.verify:
        coverage.update(names, table, options.missing, print)
    print(coverage.listing(names, coverage.read_table(table)))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from spark.benchmark.report import save
    from spark.benchmark.step import Workload, benchmark

    size = _input_size(options.input_size) if options.input_size else None
    workload = Workload(
        options.model, options.batch, size, options.mask_ratio, options.decoder_width, options.device, options.method
    )
    result = benchmark(workload, options.precision, options.rounds, options.compile, options.ratios, print)
    page = save(result, options.out)
    print(f"\n{page.read_text(encoding='utf-8')}\nwritten to {page}")
    return 0


def _bench_data(options: argparse.Namespace) -> int:
    from spark.benchmark.loader import benchmark_loader
    from spark.methods.registry import read_recipe

    names_a_folder = any(override.startswith("out=") for override in options.overrides)
    unused = [] if names_a_folder else ["out=unused"]  # a recipe requires one, but nothing is written here
    config = read_recipe(options.recipe, [*options.overrides, *unused])
    print(benchmark_loader(config, options.seconds))
    return 0


def _reconstruct(options: argparse.Namespace) -> int:
    from spark.visualize.reconstruct import visualize_reconstructions

    written = visualize_reconstructions(
        options.checkpoint, options.images, options.seeds, options.mask_ratios, options.out, options.device,
        options.trust,
    )
    print("\n".join(f"written to {path}" for path in written))
    return 0


def _vanishing(options: argparse.Namespace) -> int:
    from spark.visualize.vanishing import visualize_vanishing

    path = visualize_vanishing(
        options.model, options.image, options.out, options.input_size, options.mask_ratio, options.seed, options.engine
    )
    print(f"written to {path}")
    return 0


def _input_size(numbers: list[int]) -> tuple[int, int]:
    """Return (height, width)."""
    if len(numbers) > 2 or min(numbers) < 1:
        raise UserError("--input-size takes one or two positive numbers: height [width]")
    return numbers[0], numbers[-1]
