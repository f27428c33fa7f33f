"""Compare SparK with reference numbers of the original implementation.

    python tools/check_golden.py tests/golden/resnet50_96.json [MORE…] [--engine compact|masked]

Each case is loaded through the importer of the original's checkpoints and computed in float64. Printed is the
largest relative error of each quantity (per tensor, relative to its l2 norm); the exit code is non-zero if one
exceeds 2e-4.

The reference numbers are float32. Where a ReLU's input lies within rounding of zero, float32 decides by chance
whether its gradient flows, and a small ResNet's gradients change by up to a per cent. So a quantity above the
tolerance gets a second look: the same model is run in float32 with weights moved by one unit in the last
place, and the error is held against the spread of these runs. Both numbers are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spark.errors import UserError, exits_cleanly
from spark.formats import original_spark
from spark.masking import enlarge
from spark.methods.spark.model import SparK
from spark.training.optim import build_optimizer, learning_rate_at, parameter_groups, set_schedule, weight_decay_at

TOLERANCE = 2e-4
ROUNDING_RUNS = 4
ROUNDING_FACTOR = 3  # the reference is one more draw, and its error may exceed the largest of a few

Numbers = dict[str, Any]
"""What a golden file calls `expected`: loss, features, grad, buffers, eval_reconstruction, lamb."""


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Check every file and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args(arguments)
    cases = {file: read_json(file) for file in options.files}
    cases = {file: case for file, case in cases.items() if is_case(case)}
    if not cases:
        raise UserError(f"no golden case of a SparK model among {', '.join(map(str, options.files))}")
    for file in set(options.files) - cases.keys():
        print(f"{file}: holds no model's numbers, left out")
    failures = 0
    for file, case in cases.items():
        print(f"{file}: {case['arch']} at {case['input_size']}, engine {options.engine}", flush=True)
        failures += check(case, options.engine)
    print("all within tolerance" if not failures else f"{failures} quantities FAILED (tolerance {TOLERANCE:.0e})")
    return int(failures > 0)


def check(case: dict[str, Any], engine: str) -> int:
    """Print the error of each quantity of a case and return how many fail."""
    exact = compute(case, engine, torch.float64)
    errors = compare(case["expected"], exact)
    noise: dict[str, float] = {}
    if max(errors.values()) > TOLERANCE:
        runs = (compute(case, engine, torch.float32, seed) for seed in range(ROUNDING_RUNS))
        spreads = [compare(run, exact) for run in runs]
        noise = {quantity: max(spread[quantity] for spread in spreads) for quantity in errors}
    failures = 0
    for quantity, error in errors.items():
        allowed = ROUNDING_FACTOR * noise.get(quantity, 0.0)
        verdict = "ok" if error <= TOLERANCE else "within float32 rounding" if error <= allowed else "FAILED"
        spread = f"  float32 rounding alone {noise[quantity]:.1e}" if error > TOLERANCE else ""
        print(f"  {quantity:<20} {error:.1e}  {verdict}{spread}", flush=True)
        failures += verdict == "FAILED"
    return failures


def read_json(path: Path) -> Any:
    """Read a file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}") from None


def is_case(content: Any) -> bool:
    """Whether this is a model's case, and not one of the lists that lie beside them."""
    return isinstance(content, dict) and {"arch", "state", "expected"} <= content.keys()


def compute(case: dict[str, Any], engine: str, dtype: torch.dtype, rounding_seed: int | None = None) -> Numbers:
    """Compute what the case expects, under the original's names.

    With a `rounding_seed`, every weight is moved at random by up to one unit in its last (float32) place.
    """
    images, masks = inputs(case)
    images = [image.to(dtype) for image in images]
    names = original_names(case)

    def fresh() -> SparK:
        model = build(case, engine).to(dtype)
        if rounding_seed is not None:
            move_by_one_place(model, rounding_seed)
        return model

    numbers = picture_numbers(fresh().eval(), images[0], masks[0])
    return numbers | training_numbers(fresh().train(), case["expected"]["lamb"], images, masks, names)


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
            numbers["grad"] = summaries(gradients, names)
            numbers["buffers"] = summaries(dict(model.named_buffers()), names)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        optimizer.step()
        for key, value in zip(lamb, (output.loss.item(), rate, decay, norm.item()), strict=True):
            lamb[key].append(value)
    return numbers | {"lamb": lamb | {"param": summaries(dict(model.named_parameters()), names)}}


def compare(expected: Numbers, numbers: Numbers) -> dict[str, float]:
    """Return the largest relative error of each quantity."""
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


def build(case: dict[str, Any], engine: str) -> SparK:
    """Build the case's model with its generated weights."""
    model = SparK(
        case["arch"], mask_ratio=case["mask_ratio"], decoder_width=case["decoder_width"], engine=engine
    )
    state = {entry["name"]: generated(entry["name"], entry["shape"]) for entry in case["state"]}
    converted = original_spark.to_spark(state).state
    missing, unexpected = model.load_state_dict(converted, strict=False)
    missing = [key for key in missing if ".head." not in key]  # the reference lacks a classifier's norm, no more
    if missing or unexpected:
        raise UserError(f"the case does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    return model


def original_names(case: dict[str, Any]) -> dict[str, str]:
    """Map the original's names to ours."""
    return original_spark.to_spark({entry["name"]: torch.empty(0) for entry in case["state"]}).mapped


def generated(name: str, shape: list[int]) -> Tensor:
    """Generate the values of a tensor from its name."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    n = random.standard_normal(shape).astype(np.float32) if shape else np.float32(0)
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


def inputs(case: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the images [B, 3, S, S] and masks [B, 1, h, w] of every step."""
    random = np.random.RandomState(case["input_seed"])
    shape = (case["batch"], 3, case["input_size"], case["input_size"])
    images = [torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for _ in range(case["steps"])]
    active = torch.tensor(case["active"], dtype=torch.bool)
    side = math.isqrt(active.shape[-1])
    return images, list(active.view(case["steps"], case["batch"], 1, side, side))


def move_by_one_place(model: SparK, seed: int) -> None:
    """Multiply every weight by 1 + u * 2^-23 with u uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            u = 2 * torch.rand(parameter.shape, generator=generator) - 1
            parameter.mul_(1 + torch.finfo(torch.float32).eps * u)


def summary(tensor: Tensor) -> Numbers:
    """Reduce a tensor to what golden files hold of it."""
    values = tensor.detach().double().flatten()
    return {
        "shape": list(tensor.shape),
        "sum": values.sum().item(),
        "l2": values.norm().item(),
        "first": values[:3].tolist(),
    }


def summaries(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Numbers]:
    """Summarise tensors under the original's names."""
    return {original: summary(tensors[ours]) for original, ours in names.items() if ours in tensors}


def relative(values: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative error; NaN and a wrong number of values are infinitely wrong."""
    if len(values) != len(expected):
        return math.inf
    return worst(abs(v - e) / (abs(e) or 1.0) for v, e in zip(values, expected, strict=True))


def tensor_error(numbers: Numbers, expected: Numbers) -> float:
    """Return the largest error of a tensor's norm, sum and first values, relative to its l2 norm.

    A sum of n values is divided by sqrt(n) first: that much larger than the norm it may be.
    """
    if numbers["shape"] != expected.get("shape", numbers["shape"]):
        return math.inf
    norm = expected["l2"] or 1.0
    errors = [abs(numbers[key] - expected[key]) / norm for key in ("l2", "masked_l2") if key in expected]
    if "sum" in expected:
        scale = norm * max(math.sqrt(math.prod(numbers["shape"])), 1.0)
        errors.append(abs(numbers["sum"] - expected["sum"]) / scale)
    if "first" in expected:
        errors.append(math.dist(numbers["first"], expected["first"]) / norm)
    return worst(errors)


def dict_error(numbers: Mapping[str, Numbers], expected: Mapping[str, Numbers]) -> float:
    """Return the largest error over all expected tensors; one that we do not have is infinitely wrong."""
    missing = [name for name in expected if name not in numbers]
    if missing:
        print(f"  missing: {', '.join(missing[:5])}", file=sys.stderr)
        return math.inf
    return worst(tensor_error(numbers[name], wanted) for name, wanted in expected.items())


def worst(errors: Iterable[float]) -> float:
    """Return the maximum, where NaN counts as infinite."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
