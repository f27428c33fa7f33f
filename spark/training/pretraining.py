"""The pre-training loop: it can be read from top to bottom, and killed at any moment.

What a step draws at random (images, crops, masks, drop path) follows from the seed and the step's number
alone. So a run that was killed and resumed has the numbers of one that never stopped, without any random
generator's state being kept.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spark.backbones.names import is_reference
from spark.backbones.own_network import source_of
from spark.config.identity import deciding_hash
from spark.config.pretrain import PretrainConfig
from spark.data.dataset import ImagePool, Sample, build_loader
from spark.data.pixels import normalize
from spark.data.samplers import STEP, EpochSampler, ShareSampler, mixed_seed
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo
from spark.methods.spark.model import build_spark
from spark.probes.monitor import LearningMonitor
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.folder import CHECKPOINTS
from spark.runs.metrics import MetricsLog
from spark.training.guard import LR_FACTOR, Counts, DivergedError, NonFiniteGuard, check_counts, check_rollback
from spark.training.initialize import initialize
from spark.training.optim import build_optimizer, learning_rate_at, parameter_groups, set_schedule, weight_decay_at
from spark.training.parallel import data_parallel
from spark.utils.device import autocast, choose_device
from spark.utils.distributed import Ranks
from spark.utils.progress import TrainingProgress
from spark.utils.provenance import code_version
from spark.utils.signals import StopRequest, leave_to_parent
from spark.visualize.curve import Curve
from spark.visualize.grid import reconstruction_grid, save_image

PICTURES, UNREADABLE = "reconstructions", "unreadable_files.txt"
IMAGES_PER_PICTURE = 6
STEPS_PER_RECORD = 10  # the loss is read from the device, and logged, once in so many steps


class Pretraining:
    """A pre-training between two steps: model, optimizer, and how many steps are done."""

    def __init__(self, config: PretrainConfig, ranks: Ranks | None = None, pool: ImagePool | None = None) -> None:
        self._config = config
        self._ranks = ranks or Ranks(choose_device(config.device))
        self._device = self._ranks.device
        torch.manual_seed(config.seed)
        self._model = build_spark(
            config.model.name, drop_path=config.model.drop_path, mask_ratio=config.mask.ratio,
            decoder_width=config.decoder.width, engine=config.engine, in_chans=config.model.in_chans,
            mask_patch_size=config.mask.patch_size, options=config.model.options,
        )
        self._source = source_of(config.model.name) if is_reference(config.model.name) else None  # as it is now
        height, width = config.data.input_size
        self._grid = self._model.grid(height, width)
        share = self._ranks.local_batch(config.train.batch)
        self._parts = config.parts(share)
        if self._model.visible_per_image(self._grid) * (share // self._parts) < 2:
            raise UserError(
                "a batch norm needs two visible patches or more: "
                "raise train.batch, train.device_batch or data.input_size"
            )
        if self._model.visible.norms_of_vectors and share // self._parts * self._ranks.size < 2:
            raise UserError(f"'{config.model.name}' has batch norms within gates, which need two images or more at a "
                            "time: raise train.batch or train.device_batch")
        self._pool = pool or ImagePool(
            config.data.root, (height, width), config.data.min_scale, config.seed, config.model.in_chans
        )
        self._steps_per_epoch = self._sampler(first_step=0).steps_per_epoch
        self.total_steps = self._steps_per_epoch * config.train.epochs
        self._monitor = LearningMonitor(config, self._ranks, self._pool, self._steps_per_epoch * config.train.batch)
        self._model.to(self._device).to(memory_format=torch.channels_last)
        if config.train.recompute:
            self._model.checkpoint_activations()
        if config.train.compile:
            self._model.compile()
        self._parallel = data_parallel(self._model, self._ranks)
        betas = (config.optimizer.betas[0], config.optimizer.betas[1])
        self._optimizer = build_optimizer(config.optimizer.name, parameter_groups(self._model), betas)
        self._guard = NonFiniteGuard(self._model, self._device)
        self._rollbacks = 0
        self.step = 0  # steps done
        self._losses: list[Tensor] = []  # since the last record, still on the device

    def initialize(self, source: str) -> None:
        """Begin with weights from elsewhere.

        Raises:
            UserError: they are not to be had, or too few match.
        """
        config, ranks = self._config, self._ranks
        line = ranks.on_main(
            lambda: initialize(self._model, source, config.model.in_chans, config.init_allow_partial)
        )
        ranks.broadcast(self._model)
        ranks.log(line)

    def fit(self, run: Path, request: StopRequest) -> None:
        """Train the steps that are left, or until asked to stop.

        Raises:
            UserError: loss or gradient stay not finite, and no lower learning rate helps, or may be tried.
        """
        self._describe()
        if self._may_roll_back and self.step == 0 and self._ranks.is_main:
            save_checkpoint(run / CHECKPOINTS, self.state_dict())  # something to go back to
        while True:
            try:
                return self._train(run, request)
            except DivergedError as error:
                self._roll_back(run, error)

    def _train(self, run: Path, request: StopRequest) -> None:
        """Train, with a checkpoint after each epoch, every few minutes, and when asked to stop.

        Then the step is finished first: a resumed run repeats nothing.
        """
        config, batch, ranks = self._config, self._config.train.batch, self._ranks
        loader = self._loader()
        unreadable = UnreadableFiles(self._pool, run / UNREADABLE if ranks.is_main else None)
        curve = Curve(run, self._model.trivial_loss)
        saved = time.monotonic()
        status = ""
        self._model.train()
        with (
            MetricsLog(run, self.step, quiet=not ranks.is_main) as log,
            TrainingProgress("pretrain", self.total_steps, batch, self.step, quiet=not ranks.is_main) as progress,
        ):
            if self.step == 0 and (found := self._monitor.look(self._model.encoder, epochs_done=0, last=False)):
                log.write(0, epoch=0.0, **found)
            for sample in loader if self.step < self.total_steps else ():
                unreadable.note(sample.unreadable)
                loss, grad_norm, rate, decay = self._train_step(sample)
                self._losses.append(loss)
                epochs_done, into_epoch = divmod(self.step, self._steps_per_epoch)
                if into_epoch == 0 or self.step % STEPS_PER_RECORD == 0:
                    status = self._record(log, lr=rate, weight_decay=decay, grad_norm=grad_norm.item()) or status
                progress.advance(status)
                # Pictures come before the checkpoint: a run that is killed in between draws them again.
                draws = epochs_done % config.train.picture_epochs == 0 or self.finished
                if ranks.is_main and into_epoch == 0:
                    curve.update(self.finished)
                if ranks.is_main and into_epoch == 0 and draws:
                    save_image(self._picture(), run / PICTURES / f"epoch_{epochs_done:05d}.png")
                stop = ranks.any(request.received)
                if into_epoch == 0 or stop:
                    for indices in ranks.gather(sorted(unreadable.found)):  # the first one's report names all
                        unreadable.note(torch.tensor(indices, dtype=torch.long))
                due = into_epoch == 0 and (epochs_done % config.train.checkpoint_epochs == 0 or self.finished)
                if due or stop or time.monotonic() - saved > 60 * config.train.checkpoint_minutes:
                    if ranks.is_main and not self._guard.counts().row:  # else the last good checkpoint stays
                        save_checkpoint(run / CHECKPOINTS, self.state_dict())
                    saved = time.monotonic()
                if stop:
                    break
        ranks.log(unreadable.summary())

    def _record(self, log: MetricsLog, **values: float) -> str:
        """Log the steps since the last record, and at an epoch's end what the encoder has learnt.

        Returns:
            What a person wants to see of it; "" if the last step was bad, and the record has to wait.

        Raises:
            DivergedError: there were too many bad steps.
        """
        bad = self._count_bad_steps()
        if bad.row:
            return ""
        mean = torch.stack(self._losses).nanmean().item()
        self._losses = []
        values |= {"skipped": bad.total} if bad.total else {}
        epochs_done, into_epoch = divmod(self.step, self._steps_per_epoch)
        if into_epoch == 0:
            values |= self._monitor.look(self._model.encoder, epochs_done, self.finished)
        log.write(self.step, epoch=self.step / self._steps_per_epoch, loss=mean, **values)
        return f"epoch {math.ceil(self.step / self._steps_per_epoch)} loss {mean:.4f}{self._monitor.status}"

    def rehearse(self) -> None:
        """Do a step with images of noise, to see what it takes; this training is of no use afterwards."""
        config = self._config
        shape = (self._ranks.local_batch(config.train.batch), config.model.in_chans, *config.data.input_size)
        self._model.train()
        self._train_step(Sample(torch.randint(0, 256, shape, dtype=torch.uint8), torch.empty(0)))  # type: ignore[arg-type]

    def _describe(self) -> None:
        """Say how the steps are computed."""
        visible, parts, ranks = self._model.visible, self._parts, self._ranks
        ranks.log(f"engine: {visible.engine}" + (f" ({visible.stood_back})" if visible.stood_back else ""))
        share = ranks.local_batch(self._config.train.batch)
        if ranks.size > 1:
            ranks.log(f"{ranks.size} processes of {share} images each; batch norms are synchronised")
        if parts > 1:
            seen = "the parts that processes compute at a time" if ranks.size > 1 else "one part at a time"
            ranks.log(
                f"accumulating {parts} parts of {share // parts} images; "
                f"batch norms (the decoder has some, too) see {seen}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            "step": self.step,
            "processes": self._ranks.size,
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "images": self._pool.identity,
            "skipped": self._guard.counts().total,
            "rollbacks": self._rollbacks,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "config": dataclasses.asdict(self._config),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: the folder of images has changed since.
        """
        if state["images"] != self._pool.identity:
            raise UserError(
                f"'{self._config.data.root}' does not hold the images that the run began with (by number and "
                "names); restore them, or pass resume=never to start again"
            )
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._losses = list(state["losses"].to(self._device))
        self._guard.reset(state.get("skipped", 0))  # older runs did not count
        self._rollbacks = state.get("rollbacks", 0)
        self.step = state["step"]

    def encoder(self) -> Encoder:
        """Return the dense encoder in timm's naming, with its provenance."""
        config = self._config
        height, width = config.data.input_size
        info = EncoderInfo(
            model=config.model.name, in_chans=config.model.in_chans, input_size=(height, width),
            mean=tuple(config.data.mean), std=tuple(config.data.std), method="spark",
            epochs=self.step // self._steps_per_epoch, config_hash=deciding_hash(config, config.FREE),
            code_version=code_version(), options=dict(config.model.options),
            recipe_hash=deciding_hash(config, config.FREE | {"seed"}, images=self._pool.identity),
            source=self._source,
        )
        return Encoder(self._model.dense_state(), info)

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.step == self.total_steps

    def _sampler(self, first_step: int) -> EpochSampler:
        train = self._config.train
        return EpochSampler(len(self._pool), train.batch, train.epochs, self._config.seed, first_step)

    def _loader(self) -> DataLoader[Sample]:
        """Return the batches of the steps that are left."""
        batch, workers = self._config.train.batch, self._config.data.workers
        sampler = ShareSampler(self._sampler(self.step), batch, self._ranks)
        pin = self._device.type == "cuda"
        loader = build_loader(self._pool, sampler, self._ranks.local_batch(batch), workers, pin)
        loader.worker_init_fn = leave_to_parent
        return loader

    def _train_step(self, sample: Sample) -> tuple[Tensor, Tensor, float, float]:
        """One update; return loss (NaN if it was left out) and gradient norm, still on the device, and the schedule."""
        mask = self._draw_mask()
        rate, decay = self._schedule()
        set_schedule(self._optimizer, rate, decay)
        self._optimizer.zero_grad()
        self._guard.before()
        loss = self._accumulate_gradients(sample.image, mask)
        grad_norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip_grad_norm)
        bad = self._guard.after(loss, grad_norm)
        self._optimizer.step()
        self.step += 1
        return torch.where(bad, torch.nan, loss), grad_norm, rate, decay

    def _draw_mask(self) -> Tensor:
        """Seed this step's randomness and return the mask of this process's images.

        It is drawn for the whole batch: how many processes share that makes no difference. What is drawn after it,
        for drop path, must not be the same in all of them.
        """
        torch.manual_seed(mixed_seed(self._config.seed, STEP, self.step))
        mask = self._ranks.slice(self._model.draw_mask(self._config.train.batch, self._grid))
        if not self._ranks.is_main:
            torch.manual_seed(mixed_seed(self._config.seed, STEP, self.step, self._ranks.rank))
        return mask

    def _accumulate_gradients(self, images: Tensor, mask: Tensor) -> Tensor:
        """Add up the gradients of the batch's parts; return the loss.

        A part's loss is a mean over its masked patches. Every image has equally many and every part equally many
        images, so the mean of the parts' losses is the batch's; and so is that over processes.
        """
        losses = []
        parts = list(zip(images.chunk(self._parts), mask.chunk(self._parts), strict=True))
        for number, (part, part_mask) in enumerate(parts, start=1):
            with self._ranks.gradient_sync(self._parallel, number == len(parts)):
                with autocast(self._device, self._config.train.precision):
                    loss = self._parallel(self._images(part), part_mask).loss
                (loss / self._parts).backward()
            losses.append(loss.detach())
        return self._ranks.mean(torch.stack(losses).mean())

    def _schedule(self) -> tuple[float, float]:
        """Return this step's learning rate and weight decay."""
        train, optimizer = self._config.train, self._config.optimizer
        warmup = train.warmup_epochs * self._steps_per_epoch
        peak = self._config.learning_rate * LR_FACTOR**self._rollbacks
        rate = learning_rate_at(self.step, self.total_steps, warmup, peak)
        decay = weight_decay_at(
            self.step, self.total_steps, optimizer.weight_decay, optimizer.weight_decay_end
        )
        return rate, decay

    def _images(self, images: Tensor) -> Tensor:
        """Normalise uint8 images on the device, in the memory format that its convolutions like."""
        normal = normalize(images, self._config.data.mean, self._config.data.std, self._device)
        return normal.contiguous(memory_format=torch.channels_last)

    def _count_bad_steps(self) -> Counts:
        """Return how many steps were left out.

        Raises:
            DivergedError: too many in a row; or the last one of all, after which nothing good could be saved.
        """
        counts = self._guard.counts()
        self._guard.forget()
        check_counts(counts, self.step, self.finished)
        return counts

    @property
    def _may_roll_back(self) -> bool:
        return self._config.train.on_divergence == "rollback"

    def _roll_back(self, run: Path, error: DivergedError) -> None:
        """Go back to the last checkpoint, with a lower learning rate from there on.

        Raises:
            UserError: that is not wanted, or was done often enough.
        """
        check_rollback(error, self._may_roll_back, self._rollbacks, "train.precision")
        rollbacks, checkpoint = self._rollbacks + 1, load_latest(run / CHECKPOINTS)
        assert checkpoint is not None  # there is one from the beginning
        self.load_state_dict(checkpoint)
        self._rollbacks = rollbacks
        # All have read what the first is about to replace. Were it not, a killed run would diverge once more.
        self._ranks.on_main(lambda: save_checkpoint(run / CHECKPOINTS, self.state_dict()))
        self._ranks.log(f"{error}: back to step {self.step}, with {LR_FACTOR**rollbacks:g} of the learning rate")

    def _picture(self) -> Tensor:
        """Draw reconstructions of the same images under the same masks every time."""
        count = min(IMAGES_PER_PICTURE, len(self._pool))
        images = self._pool.some(count)
        generator = torch.Generator().manual_seed(self._config.seed)
        mask = self._model.draw_mask(count, self._grid, generator)
        data = self._config.data
        return reconstruction_grid(self._model, self._images(images), mask, data.mean, data.std)
