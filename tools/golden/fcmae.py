"""Cases of the original FCMAE: maps, predictions, losses and gradients with either response norm, steps of AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.compare import (
    Numbers,
    dict_error,
    patch_masks,
    random_images,
    relative,
    standard_normal,
    summaries,
    summary,
    take_steps,
    tensor_error,
)
from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.formats import original_fcmae
from spark.methods.fcmae.model import FCMAE
from spark.methods.patch_targets import Patches
from spark.training.optim import build_optimizer, parameter_groups

TOLERANCES = {"float64": 1e-9, "float32": 2e-4}
IMAGE = "grn_image"  # the variant whose response norms are over each image


def is_case(content: Any) -> bool:
    """Whether this is such a case."""
    return isinstance(content, dict) and content.get("method") == "fcmae" and {"kept", "expected"} <= content.keys()


def title(case: Mapping[str, Any]) -> str:
    """Name the network."""
    return f"FCMAE, {case['arch']['name']} at {case['arch']['img_size']}"


def errors(case: dict[str, Any], engine: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest relative error of each quantity."""
    side = case["arch"]["img_size"]
    images = random_images(case["input_seed"], case["steps"], (case["batch"], 3, side, side), dtype)
    masks = patch_masks(case["kept"])
    found: dict[str, float] = {}
    variants = {case["grn"]: case["expected"]}
    if IMAGE in case.get("expected_variants", {}):
        variants["image"] = case["expected_variants"][IMAGE]
    for grn, expected in variants.items():
        numbers = first_pass(build(case, engine, grn, dtype), images[0], masks[0])
        found |= {f"GRN {grn}: {what}": error for what, error in _first_errors(numbers, expected).items()}
    if "adamw" in case["expected"]:
        model = build(case, engine, case["grn"], dtype)
        found |= _step_errors(model, case["adamw"], case["expected"]["adamw"], images, masks)
    return found


def _first_errors(numbers: Numbers, expected: Numbers) -> dict[str, float]:
    names = [stage["name"] for stage in expected["stages"]]
    stages = dict(zip(names, numbers["stages"], strict=True))
    return {
        "loss": relative([numbers["loss"]], [expected["loss"]]),
        "stages": dict_error(stages, {stage["name"]: stage for stage in expected["stages"]}),
        "latent": tensor_error(numbers["latent"], expected["latent"]),
        "prediction": tensor_error(numbers["pred"], expected["pred"]),
        "gradients": dict_error(numbers["grad"], expected["grad"]),
    }


def first_pass(model: FCMAE, images: Tensor, mask: Tensor) -> Numbers:
    """Look closely at a forward and a backward pass."""
    with model.visible.use_mask(mask):
        stages = [model.visible.leave(feature) for feature in model.encoder(model.visible.enter(images))]
    output = model(images, mask)
    output.loss.backward()
    (latent,) = model.feature_maps(output)
    every = torch.arange(mask[0].numel()).expand(len(images), -1)
    prediction = Patches(model.stride, 3, normalized=True).take(output.prediction, every)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "loss": output.loss.item(),
        "stages": [sparse_summary(stage, mask) for stage in stages],
        "latent": sparse_summary(latent, mask),
        "pred": summary(prediction),
        "grad": summaries(original_fcmae.from_ours(gradients).state),
    }


def _step_errors(
    model: FCMAE, settings: Numbers, expected: Numbers, images: list[Tensor], masks: list[Tensor]
) -> dict[str, float]:
    groups = parameter_groups(model, model.decayed)
    decaying = {parameter for group in groups if group["decays"] for parameter in group["params"]}
    optimizer = build_optimizer("adamw", groups, tuple(settings["betas"]))
    losses, norms = take_steps(model, optimizer, settings, images, masks)
    own = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    final = original_fcmae.from_ours(own)
    decayed = {name for ours, name in final.mapped.items() if model.get_parameter(ours) in decaying}
    return {
        "AdamW decays what it should": float(decayed != set(expected["decay"])),
        "AdamW losses": relative(losses, expected["losses"]),
        "AdamW gradient norms": relative(norms, expected["grad_norms"]),
        "AdamW parameters": dict_error(summaries(final.state), expected["final"]),
    }


def build(case: dict[str, Any], engine: str, grn: str, dtype: torch.dtype) -> FCMAE:
    """Build the case's model with its generated weights."""
    arch = case["arch"]
    options = {"depths": tuple(arch["depths"]), "dims": tuple(arch["dims"])}
    pyramid = TimmPyramid(arch["name"], options=options)
    model = FCMAE(pyramid, case["mask_ratio"], arch["decoder_embed_dim"], arch["decoder_depth"], engine, grn)
    state = {entry["name"]: generated(entry["name"], entry["shape"]) for entry in case["state"]}
    converted, own = original_fcmae.to_ours(state).state, model.state_dict()
    missing = [key for key in own if key not in converted and ".head." not in key]  # it is behind the last map
    unexpected = [key for key in converted if key not in own]
    if missing or unexpected:
        raise UserError(f"the case does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    shaped = {key: tensor.reshape(own[key].shape) for key, tensor in converted.items()}  # 1x1 convolutions
    model.load_state_dict(shaped, strict=False)
    return model.to(dtype).train()


def generated(name: str, shape: list[int]) -> Tensor:
    """Generate the values of a tensor from its name."""
    n = standard_normal(name, shape).astype(np.float64)
    last = name.rpartition(".")[2]
    if last == "mask_token":
        value = 0.02 * n
    elif last in {"bias", "beta"}:
        value = 0.1 * n
    elif last == "gamma":
        value = 0.5 + 0.1 * n
    elif last == "kernel":
        value = n / math.sqrt(math.prod(shape[:-1]))
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def sparse_summary(map_BCHW: Tensor, mask: Tensor) -> Numbers:
    """Summarise a map with holes: single values are of the first and the last visible position."""
    scale = map_BCHW.shape[-1] // mask.shape[-1]
    shown = mask.repeat_interleave(scale, 2).repeat_interleave(scale, 3).squeeze(1)
    positions_VC = map_BCHW.detach().permute(0, 2, 3, 1)[shown].double()
    return summary(map_BCHW) | {
        "visible": len(positions_VC), "first": positions_VC[0, :3].tolist(), "last": positions_VC[-1, -3:].tolist(),
    }
