"""What a training step costs, part by part, in each of the ways that its method can compute it, side by side.

The variants take turns (A B C A B C …) in one process, so that a machine whose speed drifts drifts for all of
them; every number is the median over the rounds.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spark.config.choices import DEFAULT_METHOD
from spark.config.pretrain import PretrainConfig
from spark.config.recipe import value_at
from spark.methods.registry import default_config, variants
from spark.methods.variant import Variant
from spark.sparse.patches import patches_per_image
from spark.training.optim import build_optimizer, parameter_groups, set_schedule
from spark.utils.device import autocast, choose_device
from spark.utils.flops import flop_counter
from spark.utils.memory import kept_for_backward
from spark.utils.provenance import code_version, environment, hardware

PARTS = ("encoder forward", "encoder backward", "decoder forward", "decoder backward", "optimizer")
"""What lies between encoder and decoder, and the loss, are counted with the decoder."""


Reporter = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """What is trained on; None: as the method's defaults say."""

    model: str = "resnet50"
    batch: int = 16
    input_size: tuple[int, int] | None = None
    mask_ratio: float | None = None
    decoder_width: int | None = None
    device: str = "auto"
    method: str = DEFAULT_METHOD

    def config(self) -> PretrainConfig:
        """Return the configuration of such a pre-training.

        Raises:
            UserError: there is no such method, or it has not all of these settings.
        """
        wanted = {
            "data.input_size": self.input_size and list(self.input_size), "mask.ratio": self.mask_ratio,
            "decoder.width": self.decoder_width,
        }
        return default_config(
            self.method, self.model, {key: value for key, value in wanted.items() if value is not None}
        )

    def described(self) -> dict[str, Any]:
        """Return all that there is to tell, with the method's defaults."""
        config = self.config()
        return asdict(self) | {
            "input_size": list(config.data.input_size), "mask_ratio": value_at(config, "mask.ratio"),
            "decoder_width": value_at(config, "decoder.width"),
        }

    def variants(self, precision: str, compile: bool = False) -> list[Variant]:
        """Return the ways to compute it, the baseline first."""
        return variants(self.method, precision, compile)


@dataclass
class Measurement:
    """One variant's costs: seconds, floating-point operations, bytes.

    Attributes:
        activations: what the encoder's forward pass keeps for its backward pass.
        step_activations: what the whole forward pass keeps.
        peak: most memory that a step has in use on a GPU; 0 on a CPU, whose allocator does not count.
    """

    variant: str
    precision: str = "float32"
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    activations: int = 0
    step_activations: int = 0
    peak: int = 0

    @property
    def encoder(self) -> float:
        """Seconds of the encoder's forward and backward pass."""
        return self.seconds["encoder forward"] + self.seconds["encoder backward"]


class TrainingStep:
    """A training step of one variant that can be timed in parts: gradients are cut at the encoder's maps."""

    def __init__(self, workload: Workload, variant: Variant, state: Mapping[str, Tensor] | None) -> None:
        self.workload, self.variant = workload, variant
        self.device = choose_device(workload.device)
        torch.manual_seed(0)
        config = workload.config()
        self.model = variant.build(config)
        if state is not None and not variant.own_weights:
            self.model.load_state_dict(state)
        self.model.to(self.device).to(memory_format=variant.memory_format)
        groups = [group | {"foreach": variant.foreach} for group in parameter_groups(self.model, self.model.decayed)]
        self.optimizer = build_optimizer("lamb", groups, (0.9, 0.95))
        set_schedule(self.optimizer, 1e-4, 0.04)
        height, width = config.data.input_size
        shape = (workload.batch, 3, height, width)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(shape, generator=generator).to(self.device)
        self.images = images.contiguous(memory_format=variant.memory_format)
        self.mask = self.model.draw_mask(workload.batch, self.model.grid(height, width), generator)
        if variant.compile:
            self.model.compile()

    def run(self, around: Callable[[str, Callable[[], Any]], Any]) -> Tensor:
        """Do one step; each part runs inside `around(part, function)`. Returns the loss."""
        model = self.model
        per_image = patches_per_image(self.mask != 0)
        mask = self.mask.to(self.device)
        self.optimizer.zero_grad()

        def forward_encoder() -> list[Tensor]:
            with autocast(self.device, self.variant.precision):
                return model.encode(self.images, mask, per_image)

        def forward_decoder() -> Tensor:
            with autocast(self.device, self.variant.precision):
                prediction = model.decode(cut, mask, per_image)
            return model.loss(prediction.float(), self.images, mask, per_image)

        def update() -> None:
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            self.optimizer.step()

        features = around("encoder forward", forward_encoder)
        cut = [feature.detach().requires_grad_() for feature in features]
        loss = around("decoder forward", forward_decoder)
        around("decoder backward", loss.backward)
        used = [feature for feature, part in zip(features, cut, strict=True) if part.grad is not None]
        gradients = [part.grad for part in cut if part.grad is not None]
        around("encoder backward", lambda: torch.autograd.backward(used, gradients))
        around("optimizer", update)
        return loss.detach()


def measure(workload: Workload, chosen: list[Variant], rounds: int, report: Reporter) -> list[Measurement]:
    """Time each variant's steps in turns."""
    first = TrainingStep(workload, chosen[0], None)
    state = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    steps = [first, *(TrainingStep(workload, variant, state) for variant in chosen[1:])]
    results = [Measurement(step.variant.label, step.variant.precision) for step in steps]
    for step, result in zip(steps, results, strict=True):
        loss = step.run(lambda part, function: function()).item()  # warm-up
        report(f"{result.variant}: loss {loss:.6f}")
        result.flops = count_flops(step)
        result.activations, result.step_activations = kept_bytes(step)
        result.peak = peak_bytes(step)
    times: list[list[dict[str, float]]] = [[] for _ in steps]
    for turn in range(rounds):
        for step, collected in zip(steps, times, strict=True):
            collected.append(_time(step))
        report(f"round {turn + 1} of {rounds}: " + ", ".join(f"{sum(c[-1].values()):.2f} s" for c in times))
    for result, collected in zip(results, times, strict=True):
        result.seconds = {part: statistics.median(one[part] for one in collected) for part in PARTS}
    return results


def _time(step: TrainingStep) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def around(part: str, function: Callable[[], Any]) -> Any:
        _wait(step.device)
        start = time.perf_counter()
        result = function()
        _wait(step.device)
        seconds[part] = time.perf_counter() - start
        return result

    step.run(around)
    return seconds


def count_flops(step: TrainingStep) -> dict[str, int]:
    """Return the floating-point operations of each part's convolutions and matrix products."""
    flops: dict[str, int] = {}

    def around(part: str, function: Callable[[], Any]) -> Any:
        with flop_counter() as counter:
            result = function()
        flops[part] = counter.get_total_flops()
        return result

    step.run(around)
    return flops


def kept_bytes(step: TrainingStep) -> tuple[int, int]:
    """Return the bytes that the forward pass keeps for the backward pass: the encoder's, and the whole one's.

    Parameters are left out, and so are the inputs of what is computed a second time.
    """
    kept: dict[str, dict[int, int]] = {}

    def around(part: str, function: Callable[[], Any]) -> Any:
        if not part.endswith("forward"):
            return function()
        with kept_for_backward(step.model) as found:
            result = function()
        kept[part] = dict(found)
        return result

    step.run(around)
    encoder, decoder = kept["encoder forward"], kept["decoder forward"]
    return sum(encoder.values()), sum((encoder | decoder).values())


def peak_bytes(step: TrainingStep) -> int:
    """Return the most memory that a step has in use on a GPU, and 0 on a CPU."""
    if step.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    step.run(lambda part, function: function())
    return torch.cuda.max_memory_allocated()


def matmul_rate(device: torch.device, precision: str, side: int = 0) -> float:
    """Measure floating-point operations per second of a square matrix product."""
    side = side or (8192 if device.type == "cuda" else 2048)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Measure bytes per second read and written by copying a large tensor."""
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(function: Callable[[], Any], device: torch.device, times: int = 7) -> float:
    function()
    seconds = []
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def benchmark(
    workload: Workload, precision: str, rounds: int, compile: bool, ratios: Sequence[float], report: Reporter
) -> dict[str, Any]:
    """Measure a workload, and the encoder at other mask ratios; return everything that a report needs.

    Raises:
        UserError: a rate has no meaning, or the model is unknown or not supported by the compact engine.
    """
    device = choose_device(workload.device)
    chosen = workload.variants(precision, compile)
    results = measure(workload, chosen, rounds, report)  # first: it refuses what is wrong
    rates = {"matmul": matmul_rate(device, precision), "copy": copy_rate(device)}
    return {
        "workload": workload.described(),
        "precision": precision,
        "rounds": rounds,
        "hardware": hardware(device),
        "environment": environment(),
        "code": code_version(),
        "date": datetime.date.today().isoformat(),
        "rates": rates,
        "variants": [asdict(result) for result in results],
        "ratios": [_at_ratio(workload, ratio, precision, rounds, report) for ratio in ratios],
    }


def _at_ratio(workload: Workload, ratio: float, precision: str, rounds: int, report: Reporter) -> dict[str, Any]:
    """Time the encoder at another mask ratio, with next to no decoder behind it."""
    report(f"mask ratio {ratio}")
    chosen = [variant for variant in workload.variants(precision) if not variant.baseline]
    results = measure(replace(workload, mask_ratio=ratio, decoder_width=32), chosen, rounds, report)
    return {"mask_ratio": ratio, "encoder": {result.variant: result.encoder for result in results}}
