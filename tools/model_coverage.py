"""Which of timm's convolutional networks can be pre-trained sparsely? Every name is built, converted and checked.

    python tools/model_coverage.py runs/coverage.csv            # all names; goes on where it was stopped
    python tools/model_coverage.py runs/coverage.csv 'resnet*'  # some of them

A network counts as *not convolutional* if, built without memory for its weights, it holds a layer that mixes positions
in another way (attention, recurrence, linear layers over positions: by its class name, MIXERS) or a position
embedding. All others are converted and measured on both engines, with random weights, in float64 (`spark check`):

    verified   the three errors of both engines are within rounding
    wrong      they are not: converted, but not to the same function
    refused    by the converter, which says why
    error      did not run, or not within the time and memory allowed
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import timm
import torch
from torch import nn

from spark.backbones import TimmPyramid
from spark.errors import UserError
from spark.sparse import ENGINES
from spark.sparse.check import TOLERANCE, check_equivalence
from spark.sparse.convert import modules_used

MIXERS = re.compile(
    "Attention|Attn|MHSA|MHA|MHCA|SHMA|LiteMLA|Transformer|Lambda|LSTM|SSD|SpatialGating|Rope|Affinity|Fourier"
)
GATES = re.compile("SplitAttn|SelectiveKernelAttn|ChannelAttn|SpatialAttn")
"""Class names that match MIXERS, but are gates or convolutions."""

EMBEDDINGS = frozenset({"pos_embed", "cls_token", "relative_position_bias_table"})
MLPS = "timm.models.mlp_mixer"  # its layers are called like others

PATCHES = (2, 4)  # side of the test picture. Where few positions make statistics, rounding grows: more are tried then


class Row(NamedTuple):
    """One line of the table."""

    model: str
    verdict: str
    masked_error: str = ""
    compact_error: str = ""
    seconds: str = ""
    reason: str = ""


def main() -> None:
    """Measure what is not yet in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="CSV file; names that are in it already are left out")
    parser.add_argument("patterns", nargs="*", default=["*"], help="names, or patterns of them")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a model")
    parser.add_argument("--memory", type=float, default=12, help="GiB for a model")
    options = parser.parse_args()
    names = [name for name in timm.list_models() if any(fnmatch(name, pattern) for pattern in options.patterns)]
    done = {row.model for row in _rows(options.out)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(Row._fields)
        for name in names:
            if name not in done:
                row = measure(name, options.timeout, int(options.memory * 2**30))
                writer.writerow(row)
                file.flush()
                print(f"{row.model:40} {row.verdict:18} {row.reason[:100]}", flush=True)
    counts = Counter(row.verdict for row in _rows(options.out) if row.model in names)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))


def measure(name: str, timeout: float, memory: int) -> Row:
    """Check one model in a process of its own, which may fail or hang."""
    context = multiprocessing.get_context("fork")  # timm and torch are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, memory, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(timeout) else Row(name, "error", reason=f"not done after {timeout:.0f} s")
    except EOFError:
        row = Row(name, "error", reason="its process died")
    process.kill()
    process.join()
    return row._replace(seconds=f"{time.monotonic() - start:.1f}")


def check(name: str) -> Row:
    """Give the verdict over one model."""
    if mixer := mixes_positions(name):
        return Row(name, "not convolutional", reason=mixer)
    worst = {}
    # Some norms of timm compute in float32 by themselves; then nothing could be told from rounding.
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):
        for engine in ENGINES:
            for patches in PATCHES:
                worst[engine] = max(check_equivalence(name, engine, patches=patches).errors)
                if worst[engine] <= TOLERANCE:
                    break
    verdict = "verified" if max(worst.values()) <= TOLERANCE else "wrong"
    return Row(name, verdict, f"{worst['masked']:.1e}", f"{worst['compact']:.1e}")


def mixes_positions(name: str) -> str:
    """Return what makes a network other than convolutional, or ""; an unused head does not."""
    with torch.device("meta"):
        try:
            network = TimmPyramid(name)
        except UserError:  # no feature pyramid
            return _mixer(timm.create_model(name).named_modules())
        try:
            used = set(modules_used(network, network.example()).values())
        except (AssertionError, RuntimeError, TypeError, ValueError):  # takes inputs of one size only, say
            return _mixer(network.named_modules())
    return _mixer((path, layer) for path, layer in network.named_modules() if not used.isdisjoint(layer.modules()))


def _mixer(layers: Iterable[tuple[str, nn.Module]]) -> str:
    for path, layer in layers:
        sort = type(layer).__name__
        if type(layer).__module__ == MLPS or (MIXERS.search(sort) and not GATES.search(sort)):
            return f"{path}: {sort}"
        for parameter, _ in layer.named_parameters(recurse=False):
            if parameter in EMBEDDINGS:
                return f"{path}.{parameter}"
    return ""


def _work(name: str, memory: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        row = check(name)
    except UserError as error:
        row = Row(name, "refused", reason=str(error))
    except Exception as error:  # any: this is the answer
        row = Row(name, "error", reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    answer.send(row)


def _rows(path: Path) -> Iterator[Row]:
    if path.exists():
        with path.open(newline="") as file:
            records: Any = csv.DictReader(file)
            yield from (Row(**record) for record in records)


if __name__ == "__main__":
    main()
