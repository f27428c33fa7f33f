"""What a benchmark found, for people: a Markdown page and a bar chart, both made from its JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from spark.benchmark.step import PARTS
from spark.utils.files import atomic_path, write_json, write_text
from spark.utils.lock import sole_writer
from spark.utils.plots import GRAY, encode, plain, quieten

COLORS = ("#4c8eda", "#93bdf0", "#e0803c", "#f2b48a", "#3fa777")  # one per part; a part's backward is its lighter
MIB = 2**20

Result = Mapping[str, Any]


def save(result: Result, folder: Path) -> Path:
    """Write JSON, Markdown and chart; return the Markdown file, named after model, hardware, date and torch."""
    base = folder / file_name(result)
    page = base.with_suffix(".md")
    with sole_writer(folder):
        write_json(base.with_suffix(".json"), result)
        with atomic_path(base.with_suffix(".png")) as temporary:
            temporary.write_bytes(draw(result))
        write_text(page, markdown(result, base.with_suffix(".png").name))
    return page


def file_name(result: Result) -> str:
    """Return e.g. `resnet50_float32_intel-xeon-processor-2-threads_2026-01-31_torch-2-9-0`."""
    words = [
        result["workload"]["model"], result["precision"], _slug(result["hardware"]), result["date"],
        f"torch-{_slug(result['environment']['torch'])}",
    ]
    return "_".join(words)


def markdown(result: Result, chart: str) -> str:
    """Write the page."""
    work, rates = result["workload"], result["rates"]
    height, width = work["input_size"]
    lines = [
        f"# {work['model']}, batch {work['batch']}, {height}x{width}, mask ratio {work['mask_ratio']}",
        "",
        f"{result['hardware']}, {result['date']}, torch {result['environment']['torch']}, code {result['code']}. "
        f"× is how many times less than the first one. Medians of {result['rounds']} rounds, in which variants took "
        f"turns. Measured rates: {rates['matmul'] / 1e9:.0f} GFLOP/s (matrix product), "
        f"{rates['copy'] / 1e9:.1f} GB/s (copy).",
        "",
        whole_table(result).to_markdown(index=False),
        "",
        f"![Seconds per part]({chart})",
        "",
        "Parts in seconds; in brackets, the share of the measured matrix-product rate that convolutions and matrix "
        "products reach. The decoder is counted with what lies before it, and with the loss.",
        "",
        part_table(result).to_markdown(index=False),
        "",
    ]
    if result["ratios"]:
        lines += ["Encoder, forward and backward, in seconds:", "", ratio_table(result).to_markdown(index=False), ""]
    return "\n".join(lines)


def whole_table(result: Result) -> pd.DataFrame:
    """Return a row per variant: speed, ratios, memory, and the time that its FLOPs would take at the full rate."""
    first = result["variants"][0]
    rows = []
    for variant in result["variants"]:
        step, flops = _step(variant), sum(variant["flops"].values())
        row = {
            "variant": variant["variant"],
            "precision": variant["precision"],
            "encoder s": f"{_encoder(variant):.3g}",
            "encoder ×": f"{_encoder(first) / _encoder(variant):.2f}",
            "step s": f"{step:.3g}",
            "step ×": f"{_step(first) / step:.2f}",
            "img/s": f"{result['workload']['batch'] / step:.3g}",
            "GFLOP": f"{flops / 1e9:.0f}",
            "floor s": f"{flops / result['rates']['matmul']:.3g}",
            "encoder's activations MiB": f"{variant['activations'] / MIB:.0f}",
            "encoder's activations ×": f"{first['activations'] / variant['activations']:.2f}",
            "all activations MiB": f"{variant['step_activations'] / MIB:.0f}",
            "all activations ×": f"{first['step_activations'] / variant['step_activations']:.2f}",
        }
        if variant["peak"]:
            row["peak MiB"] = f"{variant['peak'] / MIB:.0f}"
        rows.append(row)
    return pd.DataFrame(rows)


def part_table(result: Result) -> pd.DataFrame:
    """Return a row per part and a column per variant."""
    rate = result["rates"]["matmul"]
    rows = []
    for part in PARTS:
        row = {"part": part}
        for variant in result["variants"]:
            seconds, flops = variant["seconds"][part], variant["flops"].get(part, 0)
            share = f" ({flops / seconds / rate:.0%})" if flops else ""
            row[variant["variant"]] = f"{seconds:.3f}{share}"
        rows.append(row)
    return pd.DataFrame(rows)


def ratio_table(result: Result) -> pd.DataFrame:
    """Return a row per mask ratio: seconds of the encoder on each engine."""
    return pd.DataFrame(
        {"mask ratio": f"{entry['mask_ratio']:.2f}"} | {name: f"{s:.3g}" for name, s in entry["encoder"].items()}
        for entry in result["ratios"]
    )


def ratio_to(result: Result, other: str, what: str) -> float:
    """Return how many times as much another variant takes as the compact one, of "encoder", "step" or "activations"."""
    take = {"encoder": _encoder, "step": _step, "activations": lambda variant: variant["activations"]}[what]
    by_name = {variant["variant"]: variant for variant in result["variants"]}
    return take(by_name[other]) / take(by_name["compact"])


def draw(result: Result) -> bytes:
    """Draw seconds per part as stacked bars, and, if measured, the encoder's seconds over the mask ratio; PNG."""
    panels = 2 if result["ratios"] else 1
    figure = Figure(figsize=(5.6 * panels, 3.4), layout="constrained", dpi=130)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_parts(axes[0], result["variants"])
    axes[0].set_title(f"{plain(result['workload']['model'])}: one training step", fontsize=10, color=GRAY)
    if result["ratios"]:
        _draw_ratios(axes[1], result["ratios"])
    return encode(figure, "png")


def _draw_parts(axes: Any, variants: Sequence[Mapping[str, Any]]) -> None:
    names = [variant["variant"] for variant in variants][::-1]
    left = [0.0] * len(names)
    for part, color in zip(PARTS, COLORS, strict=True):
        seconds = [variant["seconds"][part] for variant in variants][::-1]
        axes.barh(names, seconds, left=left, label=part, color=color, height=0.62)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.2g} s, {max(left) / total:.2f}×", va="center", fontsize=8, color=GRAY)
    axes.set_xlim(0, max(left) * 1.28)
    axes.set_xlabel("seconds")
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), labelcolor=GRAY)
    quieten(axes)


def _draw_ratios(axes: Any, ratios: Sequence[Mapping[str, Any]]) -> None:
    masked_out = [entry["mask_ratio"] for entry in ratios]
    for name, color in zip(ratios[0]["encoder"], COLORS[2::-2], strict=False):
        axes.plot(masked_out, [entry["encoder"][name] for entry in ratios], marker="o", label=name, color=color)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mask ratio")
    axes.set_title("encoder, forward and backward: seconds", fontsize=10, color=GRAY)
    axes.legend(fontsize=8, frameon=False, labelcolor=GRAY)
    quieten(axes)


def _encoder(variant: Mapping[str, Any]) -> float:
    return variant["seconds"]["encoder forward"] + variant["seconds"]["encoder backward"]


def _step(variant: Mapping[str, Any]) -> float:
    return sum(variant["seconds"].values())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("(r)", "")).strip("-")
