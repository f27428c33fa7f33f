"""A complete pre-training run: its folder, resuming, and the exported encoder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spark.config.pretrain import PretrainConfig
from spark.formats.encoder import INFO, WEIGHTS, save_encoder
from spark.training.auto import resolved_before
from spark.training.loop import Training
from spark.training.pretraining import RECONSTRUCTIONS, Pretraining
from spark.training.processes import in_processes
from spark.training.sizing import sized
from spark.utils.distributed import Ranks
from spark.utils.files import write_text
from spark.utils.signals import StopRequest
from spark.visualize.curve import FILE_NAME as CURVE

STOPPED = "stopped"  # marker file in the folder of a stopped, resumable run; torchrun hides exit codes


def pretrain(config: PretrainConfig, written: Collection[str] = ()) -> Path:
    """Run or resume a pre-training and return the run's folder.

    Args:
        config: configuration of the run.
        written: dotted keys of the settings given explicitly, which `train.preset=auto` does not change.

    Raises:
        UserError: the data, the model or the configuration is invalid, or the loss is non-finite.
        PostponedError: a signal asked the run to stop, and its state was saved.
    """
    run = Path(config.out)

    def work(ranks: Ranks, request: StopRequest) -> Path | None:
        if ranks.is_main and (run / STOPPED).is_file():
            (run / STOPPED).unlink()  # before anything that may fail
        return run if _pretrain(sized(config, written, ranks), run, ranks, request) else None

    return in_processes(run, config.device, work)[0]


def _pretrain(config: PretrainConfig, run: Path, ranks: Ranks, request: StopRequest) -> bool:
    """Return whether the run finished (False: it was stopped)."""
    before = resolved_before(config, ranks)
    learner = ranks.on_all(lambda: Pretraining(config, ranks, before=before))
    yields = (WEIGHTS, INFO, CURVE, RECONSTRUCTIONS, STOPPED)
    training = Training("pretrain", config, learner.schedule, learner, ranks, yields)
    if not training.complete(request):
        told = f"saved after step {training.saved_step} of {training.total_steps}\n"
        ranks.on_main(lambda: write_text(run / STOPPED, told))  # all wait: torchrun ends the rest when one has ended
        return False
    if not training.steps_done_here and (run / WEIGHTS).is_file() and (run / INFO).is_file():
        ranks.log(f"{run} is finished already; resume=never starts it again")
    elif ranks.is_main:
        weights = save_encoder(run, learner.encoder(training.step))
        ranks.log(f"encoder exported to {weights}")
    return True
