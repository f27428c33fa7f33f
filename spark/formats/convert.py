"""`spark convert SRC DST --to FORMAT`: convert an encoder, explain every key, prove the result."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import timm
import torch
from torch import Tensor

from spark.backbones.names import is_reference
from spark.errors import UserError
from spark.formats import detectron2, torchvision
from spark.formats.encoder import INFO, WEIGHTS, Encoder, EncoderInfo, save_encoder
from spark.formats.naming import Conversion
from spark.formats.proofs import Difference, randomize_statistics
from spark.formats.reader import Source, optional, read
from spark.formats.registry import FORMATS, WHOLE_FORMATS, WholeFormat
from spark.utils.lock import sole_writer, sole_writer_of_file
from spark.utils.state_dict import load_strictly

PLAIN = re.compile(
    r"resnet(18|34|50|101|152|200)|resnext\d+_\d+x\d+d|wide_resnet\d+_2|"
    r"convnext(v2)?_(atto|femto|pico|nano|tiny|small|base|large|xlarge|huge)"
)
Compare = Callable[[dict[str, Tensor], dict[str, Tensor], EncoderInfo], Difference]
TOLERANCE = 1e-4  # of the outputs of both models, relative


def convert(
    source: Path,
    destination: Path,
    to: str,
    model: str | None = None,
    method: str | None = None,
    verbose: bool = False,
    ema: bool = False,
) -> None:
    """Convert a checkpoint and print what became of its tensors: of each one with `verbose`, else examples.

    Raises:
        UserError: the source cannot be read or explained, the target cannot hold it, or a proof fails.
    """
    if source.exists() and source.resolve() in (place.resolve() for place in _writes(destination, to)):
        raise UserError(f"'{destination}' is where the source itself lies; give another destination")
    found = read(source, model, method, ema)
    info = found.encoder.info
    if is_reference(info.model):
        raise UserError(f"'{info.model}' is no timm model: there is nothing to convert; its own class takes the export")
    if to == "detectron2" and destination.suffix != ".pkl":
        raise UserError(f"Detectron2 reads its own weights from .pkl files; write to '{destination}.pkl'")
    print(f"{source}: {found.format}, {info.model}")
    for note in found.notes:
        print(f"note: {note}")
    if found.format in FORMATS and (caution := FORMATS[found.format].CAUTION):
        print(f"note: {caution}")
    _require_plain(to, info)
    converted = to_format(found, to)
    report(converted, verbose)
    prove_timm(found.encoder)
    whole = _whole_format(found, to)
    for name in FORMATS:
        if name == to and whole is not None and found.pretraining is not None:
            count = prove_way_back(name, found.pretraining, converted, whole.to_ours(converted.state))
            print(f"proof: converting back gives the same {count} tensors")
        elif name in (found.format, to):
            prove(name, info, found.encoder.state)
    if to == "timm":
        with sole_writer(destination):
            written = [save_encoder(destination, found.encoder)]
    else:
        with sole_writer_of_file(destination):
            written = FORMATS[to].save(destination, converted.state, info)
    print(f"wrote {', '.join(map(str, written))}")
    if to != "timm":
        print(FORMATS[to].USAGE)


def _writes(destination: Path, to: str) -> tuple[Path, ...]:
    """Return what a conversion would replace."""
    own = (destination / WEIGHTS, destination / INFO) if to == "timm" else (destination.with_suffix(".yaml"),)
    return destination, *own


def _require_plain(to: str, info: EncoderInfo) -> None:
    """Refuse what fits by its names alone, where no model of a format is at hand to compare outputs with.

    Raises:
        UserError: the network is a variant of those that the format is for.
    """
    if to == "timm" or _comparison(to) is not None:
        return
    if info.options or not PLAIN.fullmatch(info.model.partition(".")[0]):
        options = f" with {info.options}" if info.options else ""
        raise UserError(f"the {FORMATS[to].TITLE} is for plain ResNets and ConvNeXts; '{info.model}'{options} has "
                        "other layers, even if all their names have a place there")


def to_format(found: Source, to: str) -> Conversion:
    """Return the whole conversion, from the source's names to those of `spark.config.choices.FORMATS`."""
    if to == "timm":
        return found.conversion
    if to == "detectron2":
        following = detectron2.from_timm(found.encoder.state)  # a tensor in the way tells more than a model's name
        detectron2.shape_of(found.encoder.info.model)
        return found.conversion.then(following)
    whole = _whole_format(found, to)
    if whole is not None and found.pretraining is not None:
        return whole.from_ours(found.pretraining)
    return found.conversion.then(FORMATS[to].from_timm(found.encoder.state))


def _whole_format(found: Source, to: str) -> WholeFormat | None:
    """Return the format as one of whole models, if it is, and the source is one with its decoder."""
    form = WHOLE_FORMATS.get(to)
    return form if form is not None and found.pretraining is not None and form.holds(found.pretraining) else None


def report(conversion: Conversion, verbose: bool) -> None:
    """Print how many tensors were mapped and to what, why others were dropped, and what is not there."""
    print(f"mapped {len(conversion.mapped)} tensors{'' if verbose else ', among them'}:")
    renamed = list(conversion.mapped.items())
    for old, new in renamed if verbose else renamed[:3] + renamed[-1:]:
        print(f"  {old} -> {new}")
    for what, reasons in (("dropped", conversion.dropped), ("missing", conversion.missing)):
        by_reason: dict[str, list[str]] = {}
        for key, reason in reasons.items():
            by_reason.setdefault(reason, []).append(key)
        for reason, keys in by_reason.items():
            shown = keys if verbose else keys[:3]
            print(f"{what} {len(keys)} ({reason}): {', '.join(shown)}{', …' if len(shown) < len(keys) else ''}")


def prove_timm(encoder: Encoder) -> None:
    """Load the encoder into timm's model and see that it yields finite features.

    Raises:
        UserError: it does not.
    """
    info = encoder.info
    network = timm.create_model(info.model, num_classes=0, in_chans=info.in_chans, **info.options).eval()
    load_strictly(network, encoder.state, "the converted state", f"timm's {info.model}", optional)
    with torch.no_grad():
        features = network.forward_features(torch.randn(1, encoder.info.in_chans, *encoder.info.input_size))
    if not features.isfinite().all():
        raise UserError(f"the converted weights do not work in timm's {info.model}: features are not finite")
    print(f"proof: timm's {encoder.info.model} takes every tensor and yields finite features")


def prove(name: str, info: EncoderInfo, state: dict[str, Tensor]) -> None:
    """Prove a format's names: converted there and back, tensors are the same; and outputs are, where it has a proof.

    Raises:
        UserError: they are not, or the format's library is not there to compare with.
    """
    there = FORMATS[name].from_timm(state)
    count = prove_way_back(name, state, there, FORMATS[name].to_timm(there.state))
    print(f"proof: converting to the {FORMATS[name].TITLE} and back gives the same {count} tensors")
    found = output_difference(name, info, state)
    if found is None:
        print(f"  outputs are not compared: no model in the {FORMATS[name].TITLE} is installed here")
    elif not found.relative <= TOLERANCE:
        raise UserError(f"proof failed: outputs of timm's and {name}'s {info.model} differ by {found.relative:.1e}")
    else:
        print(
            f"proof: outputs of timm's and {name}'s {info.model} agree within {found.relative:.1e} (relative), "
            f"{found.absolute:.1e} (absolute)"
        )


def prove_way_back(name: str, state: dict[str, Tensor], there: Conversion, back: Conversion) -> int:
    """See that a format and back again is the same state, except for what the format has no place for.

    Returns:
        How many tensors are the same.

    Raises:
        UserError: it is not.
    """
    kept = {key: tensor for key, tensor in state.items() if key not in there.dropped}
    # Where one has a linear layer and the other a 1x1 convolution, axes of length 1 come and go.
    same = back.state.keys() == kept.keys() and all(
        back.state[key].squeeze().equal(tensor.squeeze()) for key, tensor in kept.items()
    )
    if not same:
        raise UserError(f"proof failed: converting to the {FORMATS[name].TITLE} and back changes tensors")
    return len(kept)


def output_difference(name: str, info: EncoderInfo, state: dict[str, Tensor]) -> Difference | None:
    """Compare outputs of timm's and another library's model under randomized batch-norm statistics.

    Returns:
        None where no library of the format is at hand.

    Raises:
        UserError: the library has no such model, or its proof is not installed.
    """
    compare = _comparison(name)
    if compare is None:
        return None
    # What an encoder may lack, such as a head's norm, is in both models what timm makes it.
    whole = timm.create_model(info.model, num_classes=0, in_chans=info.in_chans, **info.options).state_dict()
    randomized = randomize_statistics(whole | state)
    return compare(randomized, FORMATS[name].from_timm(randomized).state, info)


def _comparison(name: str) -> Compare | None:
    """Return what compares outputs with another library's model; None where no library of the format is at hand.

    Raises:
        UserError: it should be there, and is not installed.
    """
    proofs = {proof.name: proof for proof in entry_points(group="spark.proofs")}
    if name == "torchvision":
        return torchvision.largest_output_difference
    if name in proofs:
        return cast(Compare, proofs[name].load())
    if name == "detectron2":
        raise UserError("the proof for Detectron2 is not installed; install this project again (make setup)")
    return None
