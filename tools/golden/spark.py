"""Cases of the original SparK: features, losses, gradients, statistics, a reconstruction, steps of LAMB."""

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
    tensor_error,
)
from spark.errors import UserError
from spark.formats import original_spark
from spark.masking import enlarge
from spark.methods.spark.model import SparK
from spark.training.optim import build_optimizer, learning_rate_at, parameter_groups, set_schedule, weight_decay_at

# The original adds 1e-8 to a denominator of its loss. In float32 chance decides whether a gradient flows through a ReLU
# whose input is zero but for rounding, and a small ResNet's gradients change by per cents: there is nothing to compare.
TOLERANCES = {"float64": 1e-6}


def is_case(content: Any) -> bool:
    """Whether this is such a case."""
    return isinstance(content, dict) and {"arch", "state", "expected", "active"} <= content.keys()


def title(case: Mapping[str, Any]) -> str:
    """Name the network."""
    return f"SparK, {case['arch']} at {case['input_size']}"


def errors(case: dict[str, Any], engine: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest relative error of each quantity."""
    expected, numbers = case["expected"], compute(case, engine, dtype)
    lamb, our_lamb = expected["lamb"], numbers["lamb"]
    return {
        "loss": relative([numbers["loss"]], [expected["loss"]]),
        "features": max(map(tensor_error, numbers["features"], expected["features"])),
        "gradients": dict_error(numbers["grad"], expected["grad"]),
        "BN buffers": dict_error(numbers["buffers"], expected["buffers"]),
        "reconstruction": tensor_error(numbers["eval_reconstruction"], expected["eval_reconstruction"]),
        **{
            f"LAMB {label}": relative(our_lamb[key], lamb[key])
            for label, key in (
                ("losses", "losses"),
                ("learning rates", "lr_per_step"),
                ("weight decays", "wd_per_step"),
                ("gradient norms", "grad_norm_per_step"),
            )
        },
        "LAMB parameters": dict_error(our_lamb["param"], lamb["param"]),
    }


def compute(case: dict[str, Any], engine: str, dtype: torch.dtype) -> Numbers:
    """Compute what the case expects, under the original's names."""
    side = case["input_size"]
    images = random_images(case["input_seed"], case["steps"], (case["batch"], 3, side, side), dtype)
    masks = patch_masks(case["active"])
    numbers = picture_numbers(build(case, engine).to(dtype).eval(), images[0], masks[0])
    model = build(case, engine).to(dtype).train()
    return numbers | training_numbers(model, case["expected"]["lamb"], images, masks, original_names(case))


def picture_numbers(model: SparK, images: Tensor, masks: Tensor) -> Numbers:
    """Reconstruct in eval mode; `masked_l2` is the norm of the picture that the encoder sees."""
    with torch.no_grad():
        picture = model.reconstruct(images, model(images, masks))
    seen = images * enlarge(masks, *images.shape[-2:])
    return {"eval_reconstruction": summary(picture) | {"masked_l2": seen.double().norm().item()}}


def training_numbers(
    model: SparK, settings: Numbers, images: list[Tensor], masks: list[Tensor], names: Mapping[str, str]
) -> Numbers:
    """Run the case's optimizer steps; the first one's forward and backward pass is looked at closely."""
    optimizer = build_optimizer("lamb", parameter_groups(model), tuple(settings["betas"]))
    total = settings["total_steps"]
    numbers: Numbers = {}
    lamb: Numbers = {key: [] for key in ("losses", "lr_per_step", "wd_per_step", "grad_norm_per_step")}
    for step in range(total):
        rate = learning_rate_at(step, total, settings["warmup_steps"], settings["peak_lr"])
        decay = weight_decay_at(step, total, settings["wd"], settings["wd_end"])
        set_schedule(optimizer, rate, decay)
        optimizer.zero_grad()
        output = model(images[step], masks[step])
        output.loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            numbers["loss"] = output.loss.item()
            numbers["features"] = [summary(feature) for feature in model.feature_maps(output)]
            numbers["grad"] = _renamed(gradients, names)
            numbers["buffers"] = _renamed(dict(model.named_buffers()), names)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        optimizer.step()
        for key, value in zip(lamb, (output.loss.item(), rate, decay, norm.item()), strict=True):
            lamb[key].append(value)
    return numbers | {"lamb": lamb | {"param": _renamed(dict(model.named_parameters()), names)}}


def build(case: dict[str, Any], engine: str) -> SparK:
    """Build the case's model with its generated weights."""
    model = SparK(
        case["arch"], mask_ratio=case["mask_ratio"], decoder_width=case["decoder_width"], engine=engine
    )
    state = {entry["name"]: generated(entry["name"], entry["shape"]) for entry in case["state"]}
    converted = original_spark.to_ours(state).state
    missing, unexpected = model.load_state_dict(converted, strict=False)
    missing = [key for key in missing if ".head." not in key]  # the reference lacks a classifier's norm, no more
    if missing or unexpected:
        raise UserError(f"the case does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    return model


def original_names(case: dict[str, Any]) -> dict[str, str]:
    """Map the original's names to ours."""
    return original_spark.to_ours({entry["name"]: torch.empty(0) for entry in case["state"]}).mapped


def generated(name: str, shape: list[int]) -> Tensor:
    """Generate the values of a tensor from its name."""
    n = standard_normal(name, shape)
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last in {"running_mean", "bias"}:
        value = 0.1 * n
    elif last == "running_var":
        value = 1 + 0.1 * np.abs(n)
    elif "mask_tokens" in name:
        value = 0.02 * n
    elif last == "gamma":
        value = 0.5 + 0.1 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    elif "up_sample" in name:
        value = n / math.sqrt(4 * shape[0])
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Numbers]:
    """Summarise tensors under the original's names."""
    return summaries({original: tensors[ours] for original, ours in names.items() if ours in tensors})
