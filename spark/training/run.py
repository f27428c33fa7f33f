"""A pre-training run as a whole: its folder, where it goes on, what it leaves behind."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spark.config.pretrain import PretrainConfig
from spark.config.recipe import save_resolved, to_yaml
from spark.formats.encoder import INFO, WEIGHTS, save_encoder
from spark.runs.checkpoint import load_latest
from spark.runs.folder import CHECKPOINTS, CONFIG, check_run_folder
from spark.training.pretraining import PICTURES, UNREADABLE, Pretraining
from spark.training.sizing import sized
from spark.utils.distributed import Ranks, process_group
from spark.utils.files import write_text
from spark.utils.signals import EXIT_CODE, PostponedError, StopRequest
from spark.visualize.curve import FILE_NAME as CURVE

STOPPED = "stopped"  # a file in the run's folder that is there while the run waits to go on; torchrun hides exit codes


def pretrain(config: PretrainConfig, written: Collection[str] = ()) -> Path:
    """Run, or go on with, a pre-training and return the run's folder.

    Args:
        config: of the run.
        written: dotted keys of the settings that `train.preset=auto` leaves as they are.

    Raises:
        UserError: the data, the model or the configuration is unsound, or the loss is no longer finite.
        PostponedError: a signal asked the run to stop, and it was saved.
    """
    run = Path(config.out)
    with process_group(config.device) as ranks, StopRequest() as request:
        if ranks.is_main and (run / STOPPED).is_file():
            (run / STOPPED).unlink()  # before anything that may fail
        finished = _pretrain(sized(config, written, ranks), run, ranks, request)
    if not finished and not ranks.is_main:
        raise SystemExit(EXIT_CODE)  # without a word: the first speaks for all
    if not finished:
        raise PostponedError(f"{run} was asked to stop and is saved; the same command goes on with it")
    return run


def _pretrain(config: PretrainConfig, run: Path, ranks: Ranks, request: StopRequest) -> bool:
    """Return whether the run is finished, and not only stopped."""
    training = ranks.on_all(lambda: Pretraining(config, ranks))
    there = ranks.on_main(lambda: _prepare(run, config))  # a damaged checkpoint is set aside before others look
    if there and (checkpoint := load_latest(run / CHECKPOINTS)):
        training.load_state_dict(checkpoint)
        if training.finished and (run / WEIGHTS).is_file() and (run / INFO).is_file():
            ranks.log(f"{run} is finished already; resume=never starts it again")
            return True
        ranks.log(f"resuming {run} after step {training.step} of {training.total_steps}")
        if checkpoint.get("processes", 1) != ranks.size:
            ranks.log(
                f"it ran in {checkpoint.get('processes', 1)} processes and goes on in {ranks.size}: "
                "the same images and masks, equal to rounding, but other draws of drop path"
            )
    elif config.init:
        training.initialize(config.init)
    if ranks.is_main:
        save_resolved(config, run / CONFIG)
    ranks.log(to_yaml(config))
    training.fit(run, request)
    if not training.finished:
        told = f"saved after step {training.step} of {training.total_steps}\n"
        ranks.on_main(lambda: write_text(run / STOPPED, told))  # all wait: torchrun ends the rest when one has ended
        return False
    if ranks.is_main:
        weights = save_encoder(run, training.encoder())
        ranks.log(f"encoder exported to {weights}")
    return True


def _prepare(run: Path, config: PretrainConfig) -> bool:
    """Make sure that the run may live in its folder; return whether there is a checkpoint to go on from."""
    yields = (WEIGHTS, INFO, CURVE, PICTURES, UNREADABLE, STOPPED)
    check_run_folder(run, config, config.resume == "never", yields)
    return load_latest(run / CHECKPOINTS) is not None
