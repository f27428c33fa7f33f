"""`train.preset=auto`: a schedule for the given images and device, with a reason for each number.

The paper's recipe is for 1.28 million images and a batch of 4096. The rules here adapt it to fewer images and
smaller devices. They are pure functions from facts to numbers and reasons. `spark.training.sizing` collects the facts.

Sources:
    Tian et al. 2023 (SparK, arXiv 2301.03580): LAMB, 2e-4 per 256 images at a batch of 4096, 1600 epochs, of which
        40 warm up.
    Woo et al. 2023 (ConvNeXt V2, arXiv 2301.00808): AdamW for masked pre-training of convolutional networks, 1.5e-4
        per 256 images at a batch of 4096.
    Malladi et al. 2022 (arXiv 2205.10287), You et al. 2020 (LAMB, arXiv 1904.00962): the learning rate of adaptive
        optimizers follows the square root of the batch. So it is taken from LARGE_BATCH on. What these papers tuned is
        too little for small batches: see what was measured.
    El-Nouby et al. 2021 (arXiv 2112.10740): masked pre-training on a tenth of ImageNet or less is as good, if the
        number of steps stays.
    Ma and Yarats 2021 (arXiv 1910.04209): 2 / (1 - beta2) steps of warm-up are enough for Adam.

Measured (tools/tune_preset.py, whose docstring has the protocol; all runs, one seed each): mean loss of the last tenth
of 200 steps (photos: 270; batch 256: 150) by peak learning rate. Drawing each patch's mean has 1.

    images                   pixels  batch  optimizer  1.5e-4   5e-4   1e-3   2e-3   4e-3   8e-3  3.2e-2
    CIFAR-10, 100                32     16  AdamW        .894   .807   .746   .726   .732   .758
    CIFAR-10, 1,000              32     32  AdamW        .895   .805   .742   .720   .710   .740
    CIFAR-10, 10,000             32     64  AdamW        .853   .716   .675   .659   .658   .667
    CIFAR-10, 50,000             32    256  AdamW               .750          .656   .650
    Tiny-ImageNet, 1,000         64     32  AdamW               .780          .738   .738
    the demo's photos, 151       64     16  AdamW        .884                 .755   .760
    CIFAR-10, 100                32     16  LAMB         .989                 .900          .763    .739

The photos were learnt by a ResNet-18, the others by tools/examples/cifar_resnet.py. Below LARGE_BATCH the peak is
therefore one number: ConvNeXt V2's 2.4e-3, between the two best columns, for AdamW. For LAMB it is 8e-3: the best is
larger, but it was not bracketed, and only measured on one set. Long runs and networks without batch norms were not
measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any, NamedTuple

from spark.config.pretrain import PretrainConfig

PAPER_BATCH, PAPER_EPOCHS, PAPER_WARMUP = 4096, 1600, 40 / 1600
PEAK: Mapping[str, float] = MappingProxyType({"lamb": 3.2e-3, "adamw": 2.4e-3})  # learning rates at PAPER_BATCH
SMALL_PEAK: Mapping[str, float] = MappingProxyType({"lamb": 8e-3, "adamw": 2.4e-3})  # below LARGE_BATCH: see above
LARGE_BATCH = 1024  # LAMB from this batch size on
SHARE = {"gpu": 256, "cpu": 64}  # maximum images of a batch per process
LEAST_BATCH, LEAST_STEPS = 16, 16  # minimum batch size, and steps per epoch
FEW = 32  # images at a time; batch-norm statistics of fewer are noisy
MOST_STEPS = 94_000  # 300 epochs of ImageNet at PAPER_BATCH
PATIENCE = 600.0  # seconds; a user wants a first result within this time
MEMORY = 0.8  # fraction of free memory to use; the rest covers fragmentation and what a rehearsal misses
RECONSTRUCTIONS = 40  # per run
MOST_WORKERS = 16


class Facts(NamedTuple):
    """Resources of a run: numbers of images and processes; per process, CPU cores and bytes of free memory."""

    images: int
    processes: int
    gpu: bool
    cores: int
    memory: int


class Cost(NamedTuple):
    """Cost of a step: fixed bytes, and bytes and seconds per image."""

    fixed: float
    per_image: float
    seconds: float


class Choice(NamedTuple):
    """A setting, by its dotted key."""

    key: str
    value: Any
    reason: str


def choose(
    config: PretrainConfig, written: Collection[str], facts: Facts, measure: Callable[[bool], Cost]
) -> list[Choice]:
    """Choose the settings of a run.

    Args:
        config: configuration; its `written` settings are kept.
        written: dotted keys of the settings given explicitly.
        facts: resources of the run.
        measure: returns the cost of a step, without or with activation checkpointing.
    """
    draft = _Draft(config, written)
    batch = draft.take("train.batch", *_batch(facts))
    cost = _fit(draft, facts, math.ceil(batch / facts.processes), measure)
    name = draft.take("optimizer.name", *_optimizer(config.optimizer.name, batch))
    draft.take("optimizer.base_lr", *_base_lr(name, batch))
    steps = max(facts.images // batch, 1)
    seconds = cost.seconds * batch / facts.processes
    epochs = draft.take("train.epochs", *(_epochs(steps) if facts.gpu else _first_look(steps, seconds)))
    draft.take("train.warmup_epochs", *_warmup(steps, epochs, config.optimizer.betas[1]))
    every = draft.take(
        "train.picture_epochs", max(1, epochs // RECONSTRUCTIONS), f"{min(RECONSTRUCTIONS, epochs)} or a few more"
    )
    draft.take("train.checkpoint_epochs", every, "with the reconstructions; others are written by the clock")
    draft.take("data.workers", *_workers(facts))
    return draft.choices


class _Draft:
    """Collects choices; explicitly written settings take precedence."""

    def __init__(self, config: PretrainConfig, written: Collection[str]) -> None:
        self._config, self._written = config, written
        self.choices: list[Choice] = []

    def free(self, key: str) -> bool:
        return key not in self._written

    def take(self, key: str, value: Any, reason: str) -> Any:
        """Record a choice unless the setting is written; return the effective value."""
        if not self.free(key):
            mine = value
            value = reduce(getattr, key.split("."), self._config)
            reason = "as you set it" + ("" if value == mine else f"; the preset would take {shown(mine)}: {reason}")
        self.choices.append(Choice(key, value, reason))
        return value


def shown(value: Any) -> str:
    """Format a value as in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _power_of_two(most: float) -> int:
    """Return the largest power of two that is at most `most`, but at least 1."""
    return 1 << max(int(most), 1).bit_length() - 1


def _batch(facts: Facts) -> tuple[int, str]:
    kind = "gpu" if facts.gpu else "cpu"
    rules = [
        (SHARE[kind], f"{SHARE[kind]} images keep a {kind.upper()} busy; a smaller batch means more steps an epoch"),
        (PAPER_BATCH / facts.processes, f"the paper's {PAPER_BATCH}"),
        (
            facts.images / LEAST_STEPS / facts.processes,
            f"{LEAST_STEPS} steps or more an epoch, so that at most a sixteenth of {facts.images} images is left out",
        ),
    ]
    share, reason = min(rules)
    least = min(LEAST_BATCH, facts.images) / facts.processes
    if share < least:
        share, reason = least, f"batch norms want {LEAST_BATCH} images or more, and there are {facts.images}"
    batch = _power_of_two(share) * facts.processes
    return batch, reason + (f" ({facts.processes} processes)" if facts.processes > 1 else "")


def _fit(draft: _Draft, facts: Facts, share: int, measure: Callable[[bool], Cost]) -> Cost:
    """Choose how many images to process at a time, so that they fit into memory; return the cost."""
    recompute, why = False, "there is memory enough"
    if not draft.free("train.recompute"):
        recompute = draft.take("train.recompute", recompute, why)
    cost = measure(recompute)
    if draft.free("train.recompute"):
        if _fitting(cost, facts) < min(share, FEW):
            recompute, why = True, f"without it {_fitting(cost, facts)} images fit at a time, and batch norms want more"
            cost = measure(recompute)
        draft.take("train.recompute", recompute, why)
    gib = 2**30
    fits = _fitting(cost, facts)
    of = f"of {facts.memory / gib:.1f} GiB that are free, measured"
    if fits >= share:
        need = (cost.fixed + cost.per_image * share) / gib
        draft.take("train.device_batch", None, f"{share} images at a time take {need:.1f} GiB {of}")
    else:
        need = (cost.fixed + cost.per_image * fits) / gib
        draft.take(
            "train.device_batch", fits,
            f"takes {need:.1f} GiB {of}; {share} would take {(cost.fixed + cost.per_image * share) / gib:.1f}",
        )
    return cost


def _fitting(cost: Cost, facts: Facts) -> int:
    return _power_of_two((MEMORY * facts.memory - cost.fixed) / max(cost.per_image, 1))


def _optimizer(usual: str, batch: int) -> tuple[str, str]:
    if usual != "lamb":
        return usual, "what the method's authors use"
    if batch >= LARGE_BATCH:
        return "lamb", f"the paper's, made for large batches: {LARGE_BATCH} or more"
    return "adamw", f"in batches below {LARGE_BATCH} it learns faster than LAMB, which was made for large ones"


def _base_lr(optimizer: str, batch: int) -> tuple[float, str]:
    if batch < LARGE_BATCH:
        peak, why = SMALL_PEAK[optimizer], f"measured on few images, much the same at any batch below {LARGE_BATCH}"
    else:
        peak = PEAK[optimizer] * math.sqrt(batch / PAPER_BATCH)
        source = "the paper's" if optimizer == "lamb" else "ConvNeXt V2's"
        why = f"{source} {PEAK[optimizer]:g} at {PAPER_BATCH}, and as the square root of the batch"
    base = float(f"{peak * 256 / batch:.3g}")
    return base, f"a peak of {base * batch / 256:.2g}: {why}"


def _epochs(steps: int) -> tuple[int, str]:
    epochs = math.ceil(MOST_STEPS / steps)
    if epochs >= PAPER_EPOCHS:
        return PAPER_EPOCHS, f"the paper's: {_steps_of(PAPER_EPOCHS, steps)}, as few images need many epochs"
    return epochs, f"{_steps_of(epochs, steps)}, as 300 epochs of ImageNet at the paper's batch"


def _first_look(steps: int, seconds: float) -> tuple[int, str]:
    """Size by time, on a CPU.

    Args:
        steps: of an epoch.
        seconds: of a step.
    """
    within = PATIENCE / (steps * seconds)
    epochs = min(max(int(within), 1), PAPER_EPOCHS)
    minutes = f"{PATIENCE / 60:.0f} minutes"
    took = f"for a first look in about {minutes}" if within >= 1 else f"which alone take longer than {minutes}"
    return epochs, f"{_steps_of(epochs, steps)} of {seconds:.2g} s on this CPU, {took}; more epochs learn more"


def _steps_of(epochs: int, steps: int) -> str:
    return f"{epochs * steps} steps, {steps} an epoch"


def _warmup(steps: int, epochs: int, beta2: float) -> tuple[int, str]:
    least = 2 / (1 - beta2)
    wanted = math.ceil(max(PAPER_WARMUP * epochs, least / steps))
    warmup = min(wanted, max(epochs // 10, 1), epochs - 1)
    if warmup < wanted:
        return warmup, "no more than a tenth of the epochs"
    if warmup * steps <= least + steps:
        return warmup, f"{warmup * steps} steps: with beta2={beta2:g}, {least:.0f} are needed"
    return warmup, f"{PAPER_WARMUP:.1%} of the epochs, as in the paper"


def _workers(facts: Facts) -> tuple[int, str]:
    if facts.gpu:
        return min(max(facts.cores - 1, 1), MOST_WORKERS), f"all but one of {facts.cores} cores feed the GPU"
    return max(1, facts.cores // 8), f"most of {facts.cores} cores are for the training itself"
