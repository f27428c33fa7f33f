"""The learner of masked pre-training: batches, steps, monitoring and plots between epochs, and the export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spark.backbones.names import is_reference
from spark.backbones.own_network import helper_hashes, source_hash, source_of
from spark.config.identity import acting, deciding_hash
from spark.config.pretrain import AUTO, PretrainConfig
from spark.data.dataset import ImagePool, Sample, build_loader
from spark.data.pixels import normalize
from spark.data.samplers import STEP, EpochSampler, ShareSampler, mixed_seed
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo
from spark.methods.registry import build_method
from spark.probes.monitor import LearningMonitor
from spark.training.auto import RESOLVED, kept, resolved_precision
from spark.training.guard import NonFiniteGuard
from spark.training.initialize import initialize
from spark.training.loop import LOSS, Learner, Schedule
from spark.training.optim import build_optimizer, parameter_groups, set_schedule, weight_decay_at
from spark.training.parallel import data_parallel
from spark.training.proof import prove_own
from spark.utils.device import autocast, choose_device
from spark.utils.distributed import Ranks
from spark.utils.provenance import code_version
from spark.utils.state_dict import load_optimizer, load_strictly
from spark.visualize.curve import Curve
from spark.visualize.grid import reconstruction_grid, save_image

RECONSTRUCTIONS = "reconstructions"
RECONSTRUCTED = 6  # images
FEW_A_SIDE = 3
FEW_PATCHES = FEW_A_SIDE**2  # of an image; with fewer there is next to nothing to predict, or to predict it from
SOURCE, HELPERS = "source", "helpers"  # checkpoint keys: hash of the file of the user's own network; of its helpers
RECORD_STEPS = 10  # interval of steps at which the loss is read from the device and logged


class Pretraining(Learner):
    """The learner of masked pre-training: a method's model, its optimizer and its images.

    Args:
        config: configuration of the run.
        ranks: the processes; by default only this one.
        pool: the images, if they are already open.
        before: resolved `auto` values of the run to resume.

    Raises:
        UserError: the data, the model or the configuration is invalid.
    """

    guard: NonFiniteGuard
    images: ImagePool

    def __init__(
        self, config: PretrainConfig, ranks: Ranks | None = None, pool: ImagePool | None = None,
        before: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._ranks = ranks or Ranks(choose_device(config.device))
        self._device = self._ranks.device
        torch.manual_seed(config.seed)
        self._model = build_method(kept(config, before or {}))
        self._precision = resolved_precision(config, "train.precision", self._device, before or {})
        self._counts_precision = True
        engine = {"engine": self._model.engine} if self._model.engine else {}
        self.resolved = {"train.precision": self._precision, **engine}
        own = is_reference(config.model.name)
        self._source = source_of(config.model.name) if own else None  # hashed now
        self._source_hash = source_hash(config.model.name) if own else None
        self._helpers = helper_hashes(config.model.name) if own else None
        height, width = config.data.input_size
        self._grid = self._model.grid(height, width)
        local_batch = self._ranks.local_batch(config.train.batch)
        self._accumulation_steps = config.accumulation_steps(local_batch)
        self._model.check_batch(local_batch // self._accumulation_steps, self._grid, self._ranks.size)
        self.images = self._pool = pool or ImagePool(
            config.data.root, (height, width), config.data.min_scale, config.seed, config.model.in_chans
        )
        self.steps_per_epoch = self._sampler(first_step=0).steps_per_epoch
        self._monitor = LearningMonitor(
            config, self._ranks, self._pool, self.steps_per_epoch * config.train.batch, self._precision
        )
        self._model.to(self._device).to(memory_format=torch.channels_last)
        if config.train.recompute:
            self._model.checkpoint_activations()
        if config.train.compile:
            self._model.compile()
        self._parallel = data_parallel(self._model, self._ranks)
        betas = (config.optimizer.betas[0], config.optimizer.betas[1])
        groups = parameter_groups(self._model, self._model.decayed)
        self._optimizer = build_optimizer(config.optimizer.name, groups, betas)
        self.guard = NonFiniteGuard(self._model, self._device)
        self._curve = Curve(Path(config.out), self._model.trivial_loss)

    @property
    def schedule(self) -> Schedule:
        """Length of the training, and the intervals of logging and checkpoints."""
        train = self._config.train
        return Schedule(
            self._config.learning_rate, train.epochs, train.warmup_epochs, train.batch, RECORD_STEPS,
            train.checkpoint_minutes, train.checkpoint_epochs, train.on_divergence == "rollback", "train.precision",
            self._config.optimizer.schedule,
        )

    @property
    def total_steps(self) -> int:
        """Total steps of the training."""
        return self.steps_per_epoch * self._config.train.epochs

    @property
    def status(self) -> str:  # type: ignore[override]  # read-only
        """Result of the last probe, as text."""
        return self._monitor.status

    def batches(self, first_step: int) -> DataLoader[Sample]:
        """Return the batches from step `first_step` on."""
        batch, workers = self._config.train.batch, self._config.data.workers
        sampler = ShareSampler(self._sampler(first_step), batch, self._ranks)
        pin = self._device.type == "cuda"
        self._model.train()
        return build_loader(self._pool, sampler, self._ranks.local_batch(batch), workers, pin)

    def step(self, batch: Sample, number: int, lr: float) -> dict[str, Any]:
        """Run one training step; see `Learner.step`."""
        mask = self._draw_mask(number)
        optimizer = self._config.optimizer
        decay = weight_decay_at(number, self.total_steps, optimizer.weight_decay, optimizer.weight_decay_end)
        set_schedule(self._optimizer, lr, decay)
        self._optimizer.zero_grad()
        self.guard.before()
        loss = self._accumulate_gradients(batch.image, mask)
        grad_norm = nn.utils.clip_grad_norm_(self._model.parameters(), optimizer.clip_grad_norm or torch.inf)
        bad = self.guard.after(loss, grad_norm)
        self._optimizer.step()
        return {LOSS: torch.where(bad, torch.nan, loss), "lr": lr, "weight_decay": decay, "grad_norm": grad_norm}

    def rehearse(self) -> None:
        """Run a step on noise images, to measure its cost; the training is not usable afterwards."""
        config = self._config
        shape = (self._ranks.local_batch(config.train.batch), config.model.in_chans, *config.data.input_size)
        self._model.train()
        noise = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.step(Sample(noise, torch.empty(0)), 0, config.learning_rate)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Prove a user's own network, and load the initial weights of the run.

        Raises:
            UserError: the network is not converted correctly; or weights cannot be loaded, or too few match.
        """
        config, ranks = self._config, self._ranks
        if proof := self.prove():
            ranks.log(proof)
        if config.init is None:
            return
        source = config.init
        line = ranks.on_main(
            lambda: initialize(self._model, source, config.model.in_chans, config.init_allow_partial)
        )
        ranks.broadcast(self._model)
        ranks.log(line)

    def prove(self) -> str:
        """Prove a user's own network unless check=false; return the result in a line, "" if nothing was to be proved.

        Raises:
            UserError: it is not converted correctly, or cannot be proved.
        """
        config = self._config
        if not (config.check and is_reference(config.model.name)):
            return ""
        return self._ranks.on_main(lambda: prove_own(config))

    def warnings(self) -> list[str]:
        """Say, each in a line, what leaves little to learn."""
        rows, columns = self._grid
        if rows * columns >= FEW_PATCHES:
            return []
        height, width = (
            max(side, FEW_A_SIDE * side // patches)
            for side, patches in zip(self._config.data.input_size, self._grid, strict=True)
        )
        return [
            f"warning: an image has only {rows * columns} patches ({rows} x {columns}) to hide and draw again, which "
            f"leaves little to learn; set data.input_size=[{height},{width}] or more, or take a network of a smaller "
            "total stride (tools/examples/cifar_resnet.py has 8)"
        ]

    def describe(self) -> None:
        """Log how the steps are computed."""
        steps, ranks = self._accumulation_steps, self._ranks
        for line in self.warnings():
            ranks.log(line)
        for line in self._model.describe():
            ranks.log(line)
        local_batch = ranks.local_batch(self._config.train.batch)
        if ranks.size > 1:
            ranks.log(f"{ranks.size} processes of {local_batch} images each; batch norms are synchronised")
        if steps > 1:
            seen = "the parts that processes compute at a time" if ranks.size > 1 else "one part at a time"
            ranks.log(
                f"accumulating {steps} parts of {local_batch // steps} images; "
                f"batch norms (the decoder has some, too) see {seen}"
            )

    def look(self, epochs_done: int, last: bool) -> dict[str, float]:
        """Probe the encoder if the configuration asks for it, and check it for collapse."""
        return self._monitor.look(self._model.encoder, epochs_done, last)

    def draw(self, epochs_done: int, last: bool) -> None:
        """Update the curve from time to time, and draw reconstructions every few epochs."""
        self._curve.update(last)
        if last or epochs_done % self._config.train.picture_epochs == 0:
            folder = Path(self._config.out) / RECONSTRUCTIONS
            save_image(self._reconstructions(), folder / f"epoch_{epochs_done:05d}.png")

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume."""
        return {
            "images": self._pool.identity,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "config": dataclasses.asdict(self._config),
            **({SOURCE: self._source_hash, HELPERS: self._helpers} if self._source_hash else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: the folder of images, or the file of the user's own network, has changed since.
        """
        self._counts_precision = RESOLVED in state
        if state["images"] != self._pool.identity:
            raise UserError(
                f"'{self._config.data.root}' does not hold the images that the run began with (by number and "
                "names); restore them, or pass resume=never to start again"
            )
        # Older versions kept fewer hashes. An export tells these, so all steps must be of the same sources.
        name, helpers = self._config.model.name, self._helpers or {}
        before = state.get(HELPERS) or helpers
        edited = [f"'{name}'"] if state.get(SOURCE, self._source_hash) != self._source_hash else []
        edited += [f"its module '{file}'" for file in sorted(before) if before[file] != helpers.get(file)]
        if edited:
            raise UserError(
                f"the source of {' and of '.join(edited)} has changed since the run in '{self._config.out}' began; "
                "restore it, or start again with another out= or with resume=never"
            )
        load_strictly(self._model, state["model"], f"the checkpoint in '{self._config.out}'", "the run's model")
        load_optimizer(self._optimizer, state["optimizer"], f"the checkpoint in '{self._config.out}'")

    def encoder(self, steps: int) -> Encoder:
        """Return the dense encoder after `steps` steps, in timm's naming, with its provenance."""
        config = self._config
        height, width = config.data.input_size
        # A precision that is written in the recipe is among the settings already; runs that an older version began have
        # the ids that it would have given them.
        beside = acting(self.resolved) if config.train.precision == AUTO and self._counts_precision else {}
        info = EncoderInfo(
            model=config.model.name, in_chans=config.model.in_chans, input_size=(height, width),
            mean=tuple(config.data.mean), std=tuple(config.data.std), method=config.method,
            epochs=steps // self.steps_per_epoch, config_hash=deciding_hash(config, config.FREE, **beside),
            code_version=code_version(), options=dict(config.model.options),
            recipe_hash=deciding_hash(config, config.FREE | {"seed"}, images=self._pool.identity, **beside),
            source=self._source, resolved=dict(self.resolved), images_checksum=self._pool.checksum,
        )
        return Encoder(self._model.encoder_state(), info)

    def _sampler(self, first_step: int) -> EpochSampler:
        train = self._config.train
        return EpochSampler(len(self._pool), train.batch, train.epochs, self._config.seed, first_step)

    def _draw_mask(self, number: int) -> Tensor:
        """Seed this step's randomness and return the mask of this process's images.

        The mask is drawn for the global batch, so it does not depend on the number of processes. Later draws, such as
        drop path, must differ between processes.
        """
        torch.manual_seed(mixed_seed(self._config.seed, STEP, number))
        mask = self._ranks.slice(self._model.draw_mask(self._config.train.batch, self._grid))
        if not self._ranks.is_main:
            torch.manual_seed(mixed_seed(self._config.seed, STEP, number, self._ranks.rank))
        return mask

    def _accumulate_gradients(self, images: Tensor, mask: Tensor) -> Tensor:
        """Accumulate the gradients of the local batch over its accumulation steps; return the loss.

        The loss of a part is the mean over its masked patches. All images have the same number of masked patches, and
        all parts the same number of images. The mean over parts, and over processes, is therefore the batch's loss.
        """
        losses = []
        steps = self._accumulation_steps
        parts = list(zip(images.chunk(steps), mask.chunk(steps), strict=True))
        for number, (part, part_mask) in enumerate(parts, start=1):
            with self._ranks.gradient_sync(self._parallel, number == len(parts)):
                with autocast(self._device, self._precision):
                    loss = self._parallel(self._normalized(part), part_mask).loss
                (loss / steps).backward()
            losses.append(loss.detach())
        return self._ranks.mean(torch.stack(losses).mean())

    def _normalized(self, images: Tensor) -> Tensor:
        """Normalize uint8 images on the device, in the memory format preferred by its convolutions."""
        normal = normalize(images, self._config.data.mean, self._config.data.std, self._device)
        return normal.contiguous(memory_format=torch.channels_last)

    def _reconstructions(self) -> Tensor:
        """Draw reconstructions, always of the same images under the same masks."""
        count = min(RECONSTRUCTED, len(self._pool))
        images = self._pool.some(count)
        generator = torch.Generator().manual_seed(self._config.seed)
        mask = self._model.draw_mask(count, self._grid, generator)
        data = self._config.data
        return reconstruction_grid(self._model, self._normalized(images), mask, data.mean, data.std)
