"""Read any checkpoint that we know into a dense encoder in timm's naming."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from spark.backbones.names import is_reference, unknown_model
from spark.backbones.options import require_own_options
from spark.backbones.timm_model import REFUSALS, cannot_build
from spark.backbones.timm_pyramid import deepest_per_stride
from spark.config.choices import DEFAULT_METHOD
from spark.errors import UserError
from spark.formats import detectron2
from spark.formats.arrays import load_arrays
from spark.formats.encoder import Encoder, EncoderInfo, is_export, load_encoder
from spark.formats.foreign import Foreign, load_foreign
from spark.formats.naming import CLASSIFIER, Conversion, rename
from spark.formats.registry import FORMATS, WHOLE_FORMATS
from spark.formats.whole_model import OURS as PREFIX
from spark.formats.whole_model import keep_encoder
from spark.utils.provenance import code_version

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPORT, TIMM = "our export", "timm or torchvision naming"  # which are the same for ResNets
OURS = "our pre-training checkpoint"
CANDIDATES: Mapping[str, tuple[str, ...]] = {  # by a tensor of their own
    "layer1.0.conv1.weight": (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200",
        "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d",
        "wide_resnet50_2", "wide_resnet101_2",
    ),
    "stages.0.blocks.0.gamma": (
        "convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "convnext_xlarge",
    ),
    "stages.0.blocks.0.mlp.grn.weight": (
        "convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano",
        "convnextv2_tiny", "convnextv2_base", "convnextv2_large", "convnextv2_huge",
    ),
}  # fmt: skip


WEIGHTS_UNDER = ("module", "model", "state_dict", "blobs")  # keys of checkpoints
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "module_ema")
COUNTS = ("n_averaged", "steps")  # of averaged models: PyTorch's, mmengine's


class Source(NamedTuple):
    """What was read, in which format it was, and what became of each of its tensors."""

    encoder: Encoder
    format: str  # one of `registry.FORMATS`, a WHOLE of theirs, EXPORT, TIMM or OURS
    conversion: Conversion
    pretraining: dict[str, Tensor] | None = None  # the state of our method's model, where it is a whole one
    notes: tuple[str, ...] = ()  # what people should know of it


def read(path: Path, model: str | None = None, method: str | None = None, ema: bool = False) -> Source:
    """Read a checkpoint of any known format.

    Args:
        path: our export (folder or file), our `last.pt`, an original SparK checkpoint of either kind, a state dict
            in timm's naming or in that of `registry.FORMATS`, or one of their detectors.
        model: the timm name; without it, the export says it or the tensors' shapes tell.
        method: how the weights were trained ("spark", "supervised"); names of tensors alone do not tell, and
            such an encoder counts as "imported" without it.
        ema: read the moving average of the weights, which some files hold beside them.

    Raises:
        UserError: missing, truncated or unknown file, or keys that nothing explains.
    """
    if is_export(path):
        if ema:
            raise UserError(f"'{path}' holds no moving average beside its weights; leave out --ema")
        return _of_export(load_encoder(path), path, model, method)
    content, notes = _load(path)
    content, more = _averaged(content, path, ema)
    state, details = _state_dict(content, path)
    told = detectron2.normalisation(state)
    kind, conversion, pretraining = _to_timm(state)
    config = details.get("config")
    config = config if isinstance(config, dict) else {}
    settings = _mapping(config.get("model"))
    name = model or details.get("arch") or settings.get("name")
    name = _known(name) if isinstance(name, str) else infer_model(conversion.state)
    channels = settings.get("in_chans") or stem_channels(name, conversion.state)
    built_with = {"in_chans": channels, **_mapping(settings.get("options"))}
    pruned = any(key.startswith(detectron2.TIMM_NET) for key in state)
    conversion = conversion.then(_fit(conversion.state, name, built_with, pruned))
    data = _mapping(config.get("data"))
    info = EncoderInfo(
        model=name, in_chans=built_with.pop("in_chans"), options=built_with,
        input_size=_size(data.get("input_size") or details.get("input_size") or 224, path),
        mean=told[0] if told else tuple(data.get("mean") or _for_channels(IMAGENET_MEAN, channels)),
        std=told[1] if told else tuple(data.get("std") or _for_channels(IMAGENET_STD, channels)),
        method=method or _method(kind, config),
        epochs=_epochs(details), config_hash=None, code_version=code_version(),
    )
    return Source(Encoder(conversion.state, info), kind, conversion, pretraining, (*notes, *more))


def _of_export(encoder: Encoder, path: Path, model: str | None, method: str | None) -> Source:
    """Return an export, if it is what it says and what is asked for."""
    info = encoder.info
    if model and model.partition(".")[0] != info.model.partition(".")[0]:
        raise UserError(f"'{path}' is a {info.model}, and not a {model}")
    if method and method != info.method:
        if info.method != "imported":
            raise UserError(f"'{path}' tells itself how it was trained: {info.method}, and not {method}")
        info = dataclasses.replace(info, method=method)
    same = Conversion(encoder.state, {key: key for key in encoder.state})
    if not is_reference(info.model):
        same = same.then(_fit(encoder.state, _known(info.model), {"in_chans": info.in_chans, **info.options}))
    return Source(Encoder(same.state, info), EXPORT, same)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], bool, str]:
    """Read a checkpoint's tensors, of whatever model, as they are named here.

    Returns:
        The tensors; whether they are those of a method's whole model, decoder and all, or a dense encoder's in timm's
        naming; the format.

    Raises:
        UserError: as for `read`.
    """
    if is_export(path):
        return load_encoder(path).state, False, EXPORT
    return tensors_of(_load(path).content, path)


def tensors_of(content: Any, path: Path) -> tuple[dict[str, Tensor], bool, str]:
    """Return what `read_tensors` does, of a checkpoint that has been read; `path` is for messages."""
    state, details = _state_dict(content, path)
    if {"step", "config", "optimizer"} <= details.keys():
        return state, True, OURS
    kind, conversion, pretraining = _to_timm(state)
    if kind != OURS and pretraining is not None:
        return pretraining, True, kind
    return conversion.state, False, kind


def infer_model(state: Mapping[str, Tensor]) -> str:
    """Return the largest candidate all of whose parameters are there, with their shapes (the classifier aside).

    The largest, because a ResNet-101 also has all that a ResNet-50 has.

    Raises:
        UserError: no candidate fits.
    """
    given = {key: bare(tensor.shape) for key, tensor in state.items() if "num_batches_tracked" not in key}
    fitting: dict[str, int] = {}
    candidates = next((names for key, names in CANDIDATES.items() if key in state), ())
    for name in candidates:
        body = _body(name, stem_channels(name, state))
        if body.items() <= given.items():
            fitting[name] = len(body)
    if fitting:
        return max(fitting, key=lambda name: fitting[name])
    tried = f"tried {', '.join(candidates)}" if candidates else f"such as '{next(iter(state), '')}'"
    raise UserError(f"no known model has these tensors ({tried}); name it with --model")


def _fit(state: Mapping[str, Tensor], name: str, built_with: Mapping[str, Any], pruned: bool = False) -> Conversion:
    """Drop the classifier, and make sure that what is left is the model, all of it and nothing else.

    Args:
        state: in timm's naming.
        name: of the model.
        built_with: more arguments of `timm.create_model`.
        pruned: whether it may lack what no feature map depends on, as a detector's backbone does.
    """
    network = _empty(name, **built_with)
    own = {key: tensor.shape for key, tensor in network.state_dict().items()}
    named = network.pretrained_cfg.get("classifier") or ()  # as timm calls this model's; other formats' are fc here
    heads = "|".join([r"(head\.)?fc", *map(re.escape, [named] if isinstance(named, str) else named)])
    kept = rename(state, [(r"(.*)", r"\1")], [(rf"({heads})\.(weight|bias)", CLASSIFIER)])
    for key in own.keys() & kept.state.keys():
        if bare(own[key]) == bare(kept.state[key].shape):  # a linear layer where the model has a 1x1 convolution
            kept.state[key] = kept.state[key].reshape(own[key])
    unexpected = [key for key in kept.state if key not in own]
    initial = _behind_last_map(name, built_with) if pruned else {}
    kept.missing |= dict.fromkeys(initial.keys() - kept.state, "behind the last feature map, as timm initialises it")
    kept.state.update({key: tensor for key, tensor in initial.items() if key not in kept.state})
    missing = [key for key in own if key not in kept.state and not optional(key)]
    misshapen = [key for key in kept.state if key in own and kept.state[key].shape != own[key]]
    if unexpected or missing or misshapen:
        problems = {"unexpected": unexpected, "missing": missing, "of another shape": misshapen}
        told = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in problems.items() if keys)
        raise UserError(f"the checkpoint is {_other(state, name) or f'not a {name}: {told}'}")
    for key in own:  # only a batch norm without momentum would use it, but strict loaders want it
        if key.endswith("num_batches_tracked"):
            if key not in kept.state:
                kept.missing[key] = "a frozen norm's count of batches, set to 0"
            kept.state.setdefault(key, torch.tensor(0))
        elif key not in kept.state:
            kept.missing[key] = "behind the last feature map, stays as timm initialises it"
    return kept


def stem_channels(name: str, state: Mapping[str, Tensor]) -> int:
    """Return the channels of the images that a state in timm's naming is for, as its first convolution tells."""
    first = timm.get_pretrained_cfg(name).first_conv
    weight = state.get(f"{first[0] if isinstance(first, tuple | list) else first}.weight")
    return weight.shape[1] if weight is not None and weight.dim() == 4 and weight.shape[1] in range(1, 65) else 3


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return what images of other channels than three are normalized by: the mean of the three."""
    return values if channels == len(values) else (round(sum(values) / len(values), 4),) * channels


def _other(state: Mapping[str, Tensor], name: str) -> str | None:
    """Return what a state is instead, "a resnet18, and no convnext_tiny"; None if it is of the family after all."""
    kind = next((key for key in CANDIDATES if key in state), None)
    if kind is None or name.partition(".")[0] in CANDIDATES[kind] or kind in _empty(name).state_dict():
        return None
    try:
        known = infer_model(state)
    except UserError:
        known = {"layer": "ResNet", "stages": "ConvNeXt"}.get(re.split(r"[\d.]", kind)[0], "network of another kind")
    return f"a {known}, and no {name}; leave out --model, or name it rightly"


@functools.cache  # a candidate is built in some tenths of a second, and there are many
def _body(name: str, in_chans: int) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of what an encoder must have."""
    return {key: bare(tensor.shape) for key, tensor in _empty(name, in_chans=in_chans).state_dict().items()
            if not optional(key)}


def bare(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without axes of length 1: a linear layer's weight is a 1x1 convolution's."""
    return tuple(length for length in shape if length != 1)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def optional(key: str) -> bool:
    """Whether a pre-trained encoder may lack this tensor: a head's norm, or a count of batches."""
    return key.startswith("head.") or key.endswith("num_batches_tracked")


def _load(path: Path) -> Foreign:
    if path.suffix == ".pkl":
        return Foreign(load_arrays(path))
    if path.suffix != ".safetensors":
        return load_foreign(path)
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        return Foreign(load_safetensors(path))
    except SafetensorError as error:
        raise UserError(f"'{path}' is truncated or not a safetensors file: {error}") from None


def _averaged(content: Any, path: Path, wanted: bool) -> tuple[Any, tuple[str, ...]]:
    """Put the moving average of the weights in their place if that is wanted; else say that there is one."""
    present = [key for key in AVERAGES if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if not wanted:
        note = f"'{present[0]}' holds a moving average (EMA) of the weights, too: --ema takes it" if present else ""
        others = {key: value for key, value in content.items() if key not in present} if present else content
        return (others, (note,)) if present and _weights_of(others) else (content, ())
    if not present:
        raise UserError(f"'{path}' holds no moving average of the weights ({', '.join(AVERAGES)}); leave out --ema")
    others = {key: value for key, value in content.items() if key not in (*WEIGHTS_UNDER, *present)}
    return {**others, "state_dict": content[present[0]]}, ()


def _weights_of(content: Mapping[str, Any]) -> str | None:
    """Return under which key weights stand."""
    return next((key for key in WEIGHTS_UNDER if isinstance(content.get(key), dict)), None)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DDP, torch.compile and averaged models put before names, in whatever order."""
    counts = [key for key in COUNTS if key in state and state[key].dim() == 0]
    names = {key: key.replace("_orig_mod.", "") for key in state if key not in counts}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        raise UserError("two tensors of the checkpoint have the same name, but for _orig_mod.")
    return {name: state[key] for key, name in names.items()}


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate the tensors from what a checkpoint says beside them."""
    details: dict[str, Any] = {}
    if isinstance(content, dict) and (key := _weights_of(content)):
        details = {name: value for name, value in content.items() if name != key}
        content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no state dict")
    state = {key: value for key, value in content.items()
             if isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided}
    extra = [key for key in content if key not in state and key != "config"]
    if extra or not state:
        raise UserError(f"'{path}' holds no state dict of a known kind (found {', '.join(map(str, extra[:5]))})")
    return _unwrapped(state), details


def _to_timm(state: dict[str, Tensor]) -> tuple[str, Conversion, dict[str, Tensor] | None]:
    """Return the format, the conversion to timm's names, and the whole pre-training model's state if it is one."""
    for original in WHOLE_FORMATS.values():
        if original.recognized(state):
            whole = original.to_ours(state)
            return original.WHOLE, keep_encoder(whole), whole.state
    if any(key.startswith(PREFIX) for key in state):
        same = Conversion(state, {key: key for key in state})
        return OURS, keep_encoder(same), state
    detectron2.refuse_caffe2(state)
    for name, module in FORMATS.items():
        if module.recognized(state):
            return name, module.to_timm(state), None
    return TIMM, rename(state, [(r"(.*)", r"\1")]), None


def _known(name: str) -> str:
    if is_reference(name):
        raise UserError(f"'{name}' is no timm model; what a run of it exports is its own class's state, as it is")
    if not timm.is_model(name):
        raise unknown_model(name)
    return name


def _empty(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return _built(name, options)


def _built(name: str, options: Mapping[str, Any]) -> Any:
    require_own_options(options)
    try:
        return timm.create_model(name, num_classes=0, **options)
    except REFUSALS as error:
        raise cannot_build(name, options, error) from None


def _behind_last_map(name: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what timm prunes from a model whose feature maps alone are wanted, at random as timm makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = _built(name, options)
    state, indices = whole.state_dict(), [index for index, _ in deepest_per_stride(whole.feature_info)]
    whole.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    return {key: state[key] for key in state.keys() - whole.state_dict().keys() if not optional(key)}


def _size(value: Any, path: Path) -> tuple[int, int]:
    """Return height and width, of a side, of both, or of timm's (channels, height, width)."""
    sides = list(value)[-2:] if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"'{path}' says input_size={value!r}, which is no size of images")
    return sides[0], sides[1]


def _method(kind: str, config: Mapping[str, Any]) -> str:
    """Return how weights were trained, where the kind of checkpoint or its configuration tells."""
    if kind == OURS:
        return str(config.get("method", DEFAULT_METHOD))
    return next((original.METHOD for original in WHOLE_FORMATS.values() if kind == original.WHOLE), "imported")


def _epochs(details: Mapping[str, Any]) -> int | None:
    epoch = details.get("epoch")
    return epoch + 1 if isinstance(epoch, int) else None
