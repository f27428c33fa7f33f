"""Cases of UM-MAE, of SimMIM in both readings, and of MAE: maps, predictions, losses, gradients, steps of AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from golden import um_networks
from golden.compare import (
    Numbers,
    dict_error,
    patch_masks,
    random_images,
    relative,
    summaries,
    summary,
    take_steps,
    tensor_error,
    worst,
)
from golden.um_names import FROM_ORIGINAL, to_original
from spark.backbones.plane.encoder import Latent
from spark.methods.mae.model import MAE
from spark.methods.patch_targets import Patches
from spark.methods.plane_method import Places
from spark.methods.simmim.config import OFFICIAL, UM
from spark.methods.simmim.model import SimMIM
from spark.methods.um_mae.model import UMMAE
from spark.training.optim import build_optimizer, parameter_groups

TOLERANCES = {"float64": 1e-9, "float32": 2e-4}
PATCH, UNIT = 16, 32  # sides of patches in pixels: of all, and of the official SimMIM
TRUE_POSITIONS = "true_decoder_positions"


def is_case(content: Any) -> bool:
    """Whether this is such a case."""
    return isinstance(content, dict) and content.get("method") in FROM_ORIGINAL and "expected" in content


def title(case: Mapping[str, Any]) -> str:
    """Name the method and the kind of network."""
    return f"{case['method']}, {case['arch']['family']} at {case['arch']['img_size']}"


def errors(case: dict[str, Any], engine: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest error of each quantity; of gradients, relative to the largest of all."""
    side = case["arch"]["img_size"]
    images = random_images(case["input_seed"], case["steps"], (case["batch"], 3, side, side), dtype)
    masks = masks_of(case)
    expected = case["expected"]
    numbers = first_pass(case, build(case, dtype), images[0], masks[0])
    stages = {stage["name"]: stage for stage in expected["stages"]}
    found = {
        "loss": relative([numbers["loss"]], [expected["loss"]]),
        "tokens": tensor_error(numbers["tokens"], expected["tokens"]),
        "stages": dict_error(dict(zip(stages, numbers["stages"], strict=True)), stages),
        "latent": tensor_error(numbers["latent"], expected["latent"]),
        "prediction": tensor_error(numbers["pred"], expected["pred"]),
        "gradients": gradient_error(numbers["grad"], expected["grad"]),
        **step_errors(case, build(case, dtype), images, masks),
    }
    if variant := case.get("expected_variants", {}).get(TRUE_POSITIONS):
        numbers = first_pass(case, build(case, dtype, legacy=False), images[0], masks[0])
        found |= {
            "true positions: loss": relative([numbers["loss"]], [variant["loss"]]),
            "true positions: prediction": tensor_error(numbers["pred"], variant["pred"]),
            "true positions: gradients": gradient_error(numbers["grad"], variant["grad"]),
        }
    return found


def masks_of(case: Mapping[str, Any]) -> list[Tensor]:
    """Return the masks of each step, as methods take them."""
    if "masked32" in case:
        return [(~hidden).to(torch.uint8) for hidden in patch_masks(case["masked32"])]
    masks = [shown.to(torch.uint8) for shown in patch_masks(case["kept"])]
    replaced = patch_masks(case["secondary"]) if case.get("secondary_ratio") else [None] * len(masks)
    return [mask if by is None else mask + by.to(torch.uint8) for mask, by in zip(masks, replaced, strict=True)]


def build(case: dict[str, Any], dtype: torch.dtype, legacy: bool = True) -> Any:
    """Build the case's model with its generated weights; `legacy`: with the original's positions in the decoder."""
    arch, method = case["arch"], case["method"]
    size = (arch["img_size"], arch["img_size"])
    planes = 2 if method == "um_mae" else 1  # cells of so many patches a side
    pyramid = um_networks.build(arch, planes, official=method == "simmim_official")
    normalized = case["norm_pix_loss"]
    decoder = tuple(arch.get(f"decoder_{key}", 0) for key in ("embed_dim", "depth", "num_heads"))
    builders: Mapping[str, Callable[[], nn.Module]] = {
        "um_mae": lambda: UMMAE(
            pyramid, size, secondary=case["secondary_ratio"], legacy_positions=legacy, normalize_targets=normalized,
            decoder=decoder,
        ),
        "mae_official": lambda: MAE(
            pyramid, size, mask_ratio=case["mask_ratio"], normalize_targets=normalized, decoder=decoder
        ),
        "simmim": lambda: SimMIM(
            pyramid, size, mask_ratio=case["mask_ratio"], patch_size=PATCH, normalize_targets=normalized, reading=UM
        ),
        "simmim_official": lambda: SimMIM(
            pyramid, size, mask_ratio=case["mask_ratio"], patch_size=UNIT, normalize_targets=normalized,
            reading=OFFICIAL,
        ),
    }
    model = builders[method]()
    um_networks.load(model, case, FROM_ORIGINAL[method])
    return model.to(dtype).train()


def first_pass(case: Mapping[str, Any], model: Any, images: Tensor, mask: Tensor) -> Numbers:
    """Look closely at a forward and a backward pass."""
    with um_networks.watched(model.encoder.network) as seen:
        output = model(images, mask)
    output.loss.backward()
    latent = Latent(*output.features)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        prediction = predicted(case, model, latent, output.prediction, mask)
    return {
        "loss": output.loss.item(),
        "tokens": summary(seen[0]),
        "stages": [summary(stage) for stage in seen[1:]],
        "latent": summary(torch.cat([latent.prefix, latent.tokens.flatten(1, 2)], 1)),
        "pred": summary(prediction),
        "grad": summaries(to_original(gradients, FROM_ORIGINAL[case["method"]])),
    }


def predicted(case: Mapping[str, Any], model: Any, latent: Latent, prediction: Tensor, mask: Tensor) -> Tensor:
    """Return the prediction as the original has it: of all patches, in its order."""
    if case["method"] == "simmim_official":
        return prediction
    if case["method"] == "simmim":
        every = torch.arange(mask[0].numel()).expand(len(mask), -1)
        return Patches(PATCH, 3, normalized=False).take(prediction, every)
    kept, hidden = model.places(mask) if case["method"] == "um_mae" else Places.of(mask, latent.tokens.shape[2])
    grid = (mask.shape[2], mask.shape[3])
    values = model.decoder.predict(model.decoder.tokens(latent, kept, hidden, grid))[:, latent.prefix.shape[1] :]
    if case["method"] == "um_mae":
        return values
    order = torch.cat([kept, hidden], 1)
    return torch.empty_like(values).scatter(1, order[..., None].expand_as(values), values)


def step_errors(case: Mapping[str, Any], model: Any, images: list[Tensor], masks: list[Tensor]) -> dict[str, float]:
    """Take the case's steps of AdamW."""
    settings, expected = case["adamw"], case["expected"]["adamw"]
    groups = parameter_groups(model, model.decayed)
    still = {parameter for group in groups if not group["decays"] for parameter in group["params"]}
    optimizer = build_optimizer("adamw", groups, tuple(settings["betas"]))
    losses, norms = take_steps(model, optimizer, settings, images, masks)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = FROM_ORIGINAL[case["method"]]
    undecayed = to_original({name: value for name, value in model.named_parameters() if value in still}, names)
    return {
        "AdamW decays what it should": float(set(undecayed) != set(expected["no_decay"])),
        "AdamW losses": relative(losses, expected["losses"]),
        "AdamW gradient norms": relative(norms, expected["grad_norms"]),
        "AdamW parameters": dict_error(summaries(to_original(trained, names)), expected["final"]),
    }


def gradient_error(numbers: Mapping[str, Numbers], expected: Mapping[str, Numbers]) -> float:
    """Return the largest error of gradients, relative to the largest gradient: some are zero but for rounding."""
    if not expected.keys() <= numbers.keys():
        return math.inf
    largest = max(wanted["l2"] for wanted in expected.values())
    return worst(
        max(abs(numbers[name]["l2"] - wanted["l2"]), math.dist(numbers[name]["first"], wanted["first"])) / largest
        for name, wanted in expected.items()
    )
