"""`spark convert SRC DST --to FORMAT`: convert an encoder, explain every key, prove the result."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points
from pathlib import Path

import timm
import torch
from torch import Tensor

from spark.errors import UserError
from spark.formats import detectron2
from spark.formats.encoder import Encoder, save_encoder
from spark.formats.naming import Conversion
from spark.formats.reader import optional, read
from spark.own_network import is_reference

TARGETS = ("timm", "detectron2")
TOLERANCE = 1e-4  # of the features of both models, relative


def convert(
    source: Path,
    destination: Path,
    to: str,
    model: str | None = None,
    method: str | None = None,
    verbose: bool = False,
) -> None:
    """Convert a checkpoint and print what became of its tensors: of each one with `verbose`, else examples.

    Raises:
        UserError: the source cannot be read or explained, the target cannot hold it, or the proof fails.
    """
    found = read(source, model, method)
    print(f"{source}: {found.format}, {found.encoder.info.model}")
    if to == "timm":
        report(found.conversion, verbose)
        prove_timm(found.encoder)
        written = [save_encoder(destination, found.encoder)]
    else:
        if destination.suffix != ".pkl":
            raise UserError(f"Detectron2 reads its own weights from .pkl files; write to '{destination}.pkl'")
        converted = detectron2.convert(found.encoder.state)
        detectron2.depth_of(found.encoder.info.model)
        report(found.conversion.then(converted), verbose)
        prove_detectron2(found.encoder.info.model, found.encoder.state)
        written = detectron2.save(destination, converted.state, found.encoder.info)
    print(f"wrote {', '.join(map(str, written))}")


def report(conversion: Conversion, verbose: bool) -> None:
    """Print how many tensors were mapped and to what, and why others were dropped."""
    print(f"mapped {len(conversion.mapped)} tensors{'' if verbose else ', among them'}:")
    renamed = list(conversion.mapped.items())
    for old, new in renamed if verbose else renamed[:3] + renamed[-1:]:
        print(f"  {old} -> {new}")
    reasons: dict[str, list[str]] = {}
    for key, reason in conversion.dropped.items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        shown = keys if verbose else keys[:3]
        print(f"dropped {len(keys)} ({reason}): {', '.join(shown)}{', …' if len(shown) < len(keys) else ''}")


def prove_timm(encoder: Encoder) -> None:
    """Load the encoder into timm's model and see that it yields finite features.

    Raises:
        UserError: it does not.
    """
    info = encoder.info
    if is_reference(info.model):
        raise UserError(f"'{info.model}' is no timm model: there is nothing to convert; its own class takes the export")
    network = timm.create_model(info.model, num_classes=0, in_chans=info.in_chans, **info.options).eval()
    missing, unexpected = network.load_state_dict(encoder.state, strict=False)
    missing = [key for key in missing if not optional(key)]
    with torch.no_grad():
        features = network.forward_features(torch.randn(1, encoder.info.in_chans, *encoder.info.input_size))
    if missing or unexpected or not features.isfinite().all():
        problems = ", ".join([*missing[:3], *unexpected[:3]]) or "features are not finite"
        raise UserError(f"the converted weights do not work in timm's {encoder.info.model}: {problems}")
    print(f"proof: timm's {encoder.info.model} takes every tensor and yields finite features")


def prove_detectron2(model: str, state: dict[str, Tensor]) -> None:
    """Compare features of timm's and Detectron2's model under randomised batch-norm statistics.

    A fresh network's statistics (0 and 1) would hide a norm that went to the wrong place.

    Raises:
        UserError: the features differ, or Detectron2 is not there to compare with.
    """
    proofs = entry_points(group="spark.proofs", name="detectron2")
    if not proofs:
        raise UserError("the proof for Detectron2 is not installed; install this project again (make setup)")
    randomised = randomise_statistics(state)
    with warnings.catch_warnings():  # Detectron2 2024 uses calls that newer torch deprecates
        warnings.simplefilter("ignore")
        largest = next(iter(proofs)).load()(randomised, detectron2.from_timm(randomised), model)
    if not largest <= TOLERANCE:
        raise UserError(f"proof failed: features of timm's and Detectron2's {model} differ by {largest:.1e}")
    print(f"proof: features of timm's and Detectron2's {model} agree within {largest:.1e} (relative)")


def randomise_statistics(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return the state with random statistics, and random scales and shifts, of all norms.

    The scales count too: timm starts a block's last norm at zero, behind which any mistake would hide.
    """
    generator = torch.Generator().manual_seed(seed)
    randomised = dict(state)
    for key, tensor in state.items():
        if key.endswith("running_var"):
            randomised[key] = 1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        elif tensor.ndim == 1:  # running mean, scale or shift
            randomised[key] = 0.3 * torch.randn(tensor.shape, generator=generator)
    return randomised
