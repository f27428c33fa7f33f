"""`spark check`: the proof of a conversion, and what the network costs, as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from torch import nn

from spark.backbones.pyramid import Pyramid
from spark.backbones.timm_pyramid import build_pyramid
from spark.checks.coverage import read_table, verified_like
from spark.checks.model_summary import ModelSummary, describe
from spark.config.choices import DEFAULT_METHOD
from spark.errors import RefusedError, UserError
from spark.methods.registry import default_config, method_class
from spark.sparse.check import TOLERANCE, Equivalence


def check(model: str, engine: str | None, input_size: tuple[int, int], method: str = DEFAULT_METHOD) -> None:
    """Print the errors of the three checks, what the model costs, and the verdict.

    Args:
        model: timm's name, or a reference to a user's own network.
        engine: one of ENGINES or "auto"; None: every engine that takes the model.
        input_size: (height, width) of the costs; the checks themselves take small images.
        method: that the network is to be pre-trained by.

    Raises:
        UserError: the model is refused, or not converted correctly.
    """
    try:
        channels = build_pyramid(model).example().shape[1]  # an own network says itself how many it takes
        chosen = {"model.in_chans": channels, "data.input_size": list(input_size)}
        summary = describe(default_config(method, model, chosen | ({"engine": engine} if engine else {})))
        results = method_class(method).verify(model, engine)
    except RefusedError as error:
        raise UserError(f"{error}.{verified_like(model, read_table())}") from error
    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        console.print(_errors(result), markup=False)
    if not all(result.holds for result in results):
        places = {result.where for result in results if result.where}
        where = f", first {' and '.join(sorted(places))}" if places else ""
        raise UserError(f"'{model}' is not converted correctly{where}; do not pre-train it")
    print_summary(summary, console)
    console.print(f"{model}: verified", markup=False)


def check_model(
    model: Pyramid | nn.Module | str, engine: str | None = None, method: str = DEFAULT_METHOD
) -> list[Equivalence]:
    """Prove that the sparse form of a network is the dense network on what is visible; return the errors found.

    Args:
        model: a network's name, a model of timm's, or a pyramid; it stays as it is.
        engine: "compact", "masked" or "auto"; None: every engine that takes the model.
        method: that the network is to be pre-trained by.

    Raises:
        UserError: the model is refused.
    """
    return method_class(method).verify(model, engine)


def print_summary(summary: ModelSummary, console: Console) -> None:
    """Print the numbers, and a table of the layers."""
    height, width = summary.input_size
    maps = ", ".join(f"{c} at {s}" for c, s in zip(summary.channels, summary.strides, strict=True))
    share = summary.encoder_flops / summary.dense_flops
    lines = {
        "maps": f"{maps} (channels at stride)",
        "parameters": f"{_short(summary.encoder_parameters)} encoder, {_short(summary.decoder_parameters)} decoder",
        "FLOPs": f"{_short(summary.encoder_flops)} encoder ({share:.0%} of {_short(summary.dense_flops)} if dense), "
        f"{_short(summary.decoder_flops)} decoder; per image, forward",
        "memory": f"about {_short(summary.activations)}B per image, and {_short(summary.fixed_memory)}B "
        "for weights, gradients and optimizer; float32",
    }
    engine = f", engine {summary.engine}" if summary.engine else ""
    console.print(
        f"costs at {height}x{width}, method {summary.method}, mask ratio {summary.mask_ratio}{engine}", markup=False
    )
    for name, text in lines.items():
        console.print(f"  {name:<12} {text}", markup=False)
    if summary.converted:
        console.print("layers")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", min_width=6)
    for layer, count, kind in summary.converted:
        table.add_row(str(count), layer, kind)
    console.print(table)


def _errors(result: Equivalence) -> str:
    lines = [f"engine {result.engine}" + (f" ({result.stood_back})" if result.stood_back else "")]
    for name, error in result.errors._asdict().items():
        lines.append(f"  {name.replace('_', ' '):<12} {error:.1e}  {'ok' if error <= TOLERANCE else 'FAILED'}")
    return "\n".join(lines)


def _short(number: int) -> str:
    """Return three digits and a letter: 23500000 -> '23.5 M'."""
    value, letters = float(number), iter(("", "k", "M", "G", "T"))
    letter = next(letters)
    while value >= 999.5:
        value, letter = value / 1000, next(letters)
    return f"{value:.3g} {letter}"
