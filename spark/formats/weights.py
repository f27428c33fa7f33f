"""What `init=` means: the one answer for pre-training, classification and detection.

    scratch               the network's own random weights
    timm:NAME             the supervised weights that timm offers for NAME
    a run's folder        the encoder that it exported; with `whole`, decoder and all
    a file                an exported encoder, or a checkpoint of any format that `spark convert` reads
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import Tensor

from spark.backbones.names import is_reference
from spark.config.choices import SCRATCH, TIMM
from spark.errors import UserError, nearest
from spark.formats.encoder import WEIGHTS, EncoderInfo, is_export, load_encoder
from spark.formats.reader import read, read_tensors, tensors_of
from spark.runs.checkpoint import read_latest
from spark.runs.folder import CHECKPOINTS
from spark.runs.record import Initialization
from spark.utils.files import sha256
from spark.utils.provenance import code_version

SUPERVISED = "supervised"


@dataclass(frozen=True)
class Weights:
    """What a network begins with.

    Attributes:
        state: tensors named as in the dense encoder, or as in a method's model; None: the network's random ones.
        record: where they come from, for result records.
        info: what network they are of, and how its images are normalized; None where nobody says.
        format: that they were read from.
        whole: whether they are those of a method's whole model, decoder and all.
    """

    state: Mapping[str, Tensor] | None
    record: Initialization
    info: EncoderInfo | None = None
    format: str = SCRATCH
    whole: bool = False


def read_weights(init: str, model: str, check: Callable[[EncoderInfo], None] = lambda info: None) -> Weights:
    """Return the encoder that `init` stands for.

    Args:
        init: as above.
        model: name of the network that the weights are for; files that do not say theirs are read as it.
        check: raises UserError where an encoder does not fit; it is asked before anything is downloaded.

    Raises:
        UserError: it does not exist, cannot be read, or does not fit.
    """
    if init == SCRATCH:
        return Weights(None, Initialization(SCRATCH))
    if init.startswith(TIMM):
        return _supervised(init, 3, check)
    path = _existing(init)
    if is_export(path):
        encoder, form = load_encoder(path), "our export"
    else:
        source = read(path, model=None if is_reference(model) else model)
        encoder, form = source.encoder, source.format
    info = encoder.info
    check(info)
    file = path / WEIGHTS if path.is_dir() else path
    record = Initialization(info.method, str(file), sha256(file), info.epochs, info.recipe_hash)
    return Weights(encoder.state, record, info, form)


def read_whole_weights(init: str, in_chans: int = 3) -> Weights:
    """Return what `init` stands for, of whatever network, with a method's decoder where there is one.

    Args:
        init: as above.
        in_chans: channels of the images, which timm adapts its weights to.

    Raises:
        UserError: it does not exist, or cannot be read.
    """
    if init == SCRATCH:
        return Weights(None, Initialization(SCRATCH))
    if init.startswith(TIMM):
        return _supervised(init, in_chans)
    path = _existing(init)
    content, _ = read_latest(path / CHECKPOINTS) if path.is_dir() else (None, [])
    state, whole, form = read_tensors(path) if content is None else tensors_of(content, path)
    return Weights(state, Initialization("imported", str(path)), None, form, whole)


def same_network(name: str, other: str) -> bool:
    """Whether two names are of one network: what follows a dot names other weights, what precedes a colon a place."""
    if is_reference(name) or is_reference(other):
        return is_reference(name) == is_reference(other) and name.rpartition(":")[2] == other.rpartition(":")[2]
    return name.partition(".")[0] == other.partition(".")[0]


def same_numbers(values: Sequence[float], others: Sequence[float], tolerance: float) -> bool:
    """Whether means, or deviations, of images are the same."""
    return len(values) == len(others) and all(
        math.isclose(a, b, abs_tol=tolerance) for a, b in zip(values, others, strict=True)
    )


def _existing(init: str) -> Path:
    path = Path(init)
    if not path.exists():
        raise UserError(f"init '{path}' does not exist: give {SCRATCH}, {TIMM}NAME, a run's folder, or a checkpoint."
                        f"{nearest(str(path), [SCRATCH])}")
    return path


def _supervised(init: str, in_chans: int, check: Callable[[EncoderInfo], None] = lambda info: None) -> Weights:
    """Return the weights that timm offers for a model, downloaded if need be, without the classifier."""
    name = init.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"init={init}: unknown model.{nearest(name, timm.list_models())}")
    told = timm.get_pretrained_cfg(name)
    info = EncoderInfo(
        model=name, in_chans=in_chans, input_size=tuple(told.input_size[-2:]), mean=tuple(told.mean),
        std=tuple(told.std), method=SUPERVISED, epochs=None, config_hash=None, code_version=code_version(),
    )  # fmt: skip
    check(info)
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_chans)
    except Exception as error:  # of whatever library downloads
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"timm cannot load the weights of '{name}' ({why}); "
            "without a network, download them elsewhere and pass init=FILE"
        ) from None
    return Weights(network.state_dict(), Initialization(SUPERVISED, init), info, "timm")
