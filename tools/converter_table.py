"""Convert randomized timm models to every other format and measure how far the outputs are apart.

    python tools/converter_table.py [MODEL…] [--out tools/converter_table.md]

The table's head says what was measured and how. The ConvNeXts of the official code and of mmpretrain, which are no
packages to compare with, are compared by tests/spark/formats/test_formats_equal.py with networks written for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import timm
import torch

from spark.errors import UserError, exits_cleanly
from spark.formats.convert import output_difference, prove_way_back
from spark.formats.encoder import EncoderInfo
from spark.formats.proofs import SIDE, randomize_statistics
from spark.formats.reader import IMAGENET_MEAN, IMAGENET_STD
from spark.formats.registry import FORMATS
from spark.utils.files import write_text
from spark.utils.provenance import code_version, environment

MODELS = (
    "resnet18", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "resnet50d",
    "convnext_tiny", "convnext_base", "convnextv2_tiny",
)  # fmt: skip
OUT = Path(__file__).with_suffix(".md")
HEAD = f"""# Converters: timm against every other format

Weights are timm's initialisation (seed 0); statistics, scales and shifts of all norms are random. A cell says how many
tensors come back bit by bit when converted to the format and back, and, where the library is installed, the largest
absolute difference of outputs: torchvision's pooled features, Detectron2's four feature maps, of two pictures of
{SIDE} x {SIDE} pixels, in float32 on the CPU. "refused": the format cannot hold the network, and the converter says
which tensor is in the way. Written by `python tools/converter_table.py`."""


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    table = pd.DataFrame([measure(model) for model in options.models]).to_markdown(index=False)
    versions = ", ".join(f"{package} {version}" for package, version in environment().items())
    write_text(options.out, f"{HEAD}\n\n{table}\n\nMeasured with {versions}.\n")
    print(f"{table}\nwritten to {options.out}")
    return 0


def measure(model: str) -> dict[str, str]:
    """Return a row of the table: what became of a model in each format."""
    torch.manual_seed(0)
    state = randomize_statistics(timm.create_model(model, num_classes=0).state_dict())
    info = EncoderInfo(
        model, 3, (SIDE, SIDE), IMAGENET_MEAN, IMAGENET_STD, "imported", epochs=None, config_hash=None,
        code_version=code_version(),
    )
    row = {"model": model}
    for name, format in FORMATS.items():
        try:
            there = format.from_timm(state)
            tensors = prove_way_back(name, state, there, format.to_timm(there.state))
            found = output_difference(name, info, state)
        except UserError as error:
            print(f"{model}, {name}: refused: {error}", flush=True)
            row[name] = "refused"
        else:
            row[name] = f"{tensors} tensors" + (f", {found.absolute:.1e}" if found else "")
    return row


if __name__ == "__main__":
    sys.exit(main())
