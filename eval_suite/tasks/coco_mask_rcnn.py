"""Instance segmentation: Mask R-CNN on data in COCO's layout, from scratch or from an exported encoder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from d2_projects.compat import quiet_detectron2, require_detectron2
from d2_projects.engine.initialize import Start, backbone_of, start_of
from eval_suite.task import Prepared, Task, Work
from spark.errors import UserError, exits_cleanly
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import Initialization, Metric, ResultRecord
from spark.utils.distributed import Ranks
from spark.utils.files import sha256, write_json, write_text
from spark.utils.provenance import code_version, content_hash, environment, hardware
from spark.utils.signals import EXIT_CODE, PostponedError, StopRequest

if TYPE_CHECKING:  # Detectron2 may be absent until `run` has asked for it
    from d2_projects.data.coco import CocoData
    from d2_projects.engine.config import DetectConfig
    from d2_projects.engine.train import Outcome

TASK, TASK_VERSION = "coco_mask_rcnn", 1
CONFIG, IDENTITY, LOG = "config.yaml", "identity.json", "log.txt"
EVALUATION, EVALUATED = "evaluation.json", "evaluation"  # of eval_only=true: the numbers, and a folder with the rest
UNIT = "AP (0-100)"
Built = TypeVar("Built")


class CocoMaskRcnn(Task):
    """`spark-eval detect`."""

    name, version, purpose = TASK, TASK_VERSION, "Mask R-CNN by Detectron2 on data in COCO's layout; box and mask AP"
    distributed = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol and the seed decide."""
        require_detectron2()
        with quiet_detectron2():
            from d2_projects.engine.config import load
            from d2_projects.engine.initialize import backbone_of

            config, _ = load(work.recipe, work.overrides()).for_gpus(work.gpus)
            settings = {"protocol": config.protocol_text(), "seed": config.cfg.train.seed}
            backbone_of(config.cfg)  # refuses a recipe that no weights can be brought into
            iterations = config.cfg.train.max_iter
        return Prepared(settings, _paths(config.cfg.data), iterations, unit="step")

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval detect RECIPE key=value …`."""
        return ["spark-eval", "detect", work.recipe, *work.overrides()]


def _paths(data: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the folders and files that tell the data of a recipe from others, whether they are there or not."""
    files = [pair.get("annotations") for pair in (data.get("train") or {}, data.get("val") or {}, data)]
    return tuple(Path(file) for file in files if file) or (Path(data["root"]),)


def run(recipe: str, overrides: list[str]) -> Path | None:
    """Train, evaluate and record one detector, in this process or together with others of torchrun or Detectron2.

    A run that was interrupted goes on; one that is finished is left alone. With `eval_only=true` only a checkpoint is
    evaluated.

    Returns:
        The path of the run's `result.json`, or of `evaluation.json`; None in all processes but the first.

    Raises:
        UserError: Detectron2, the recipe, the data or the encoder is missing or does not fit.
        PostponedError: a signal asked the run to stop, and it was saved.
        SystemExit: in all processes but the first, instead of these.
    """
    require_detectron2()
    with quiet_detectron2():
        from d2_projects.engine.config import load
        from d2_projects.engine.processes import pick_device, processes

        def read() -> DetectConfig:
            config = load(recipe, overrides)
            pick_device(config.cfg.train.device)
            return config

        config = said_once(read)
        with processes(config.cfg.train.device) as ranks, stop_request() as request:
            try:
                if config.eval_only:
                    return evaluate_and_write(config, ranks)
                return train_and_record(config, ranks, request)
            except PostponedError:
                if not ranks.is_main:
                    raise SystemExit(EXIT_CODE) from None
                raise


def run_launched(recipe: str, overrides: list[str], count: int) -> int:
    """Do as `run` in so many processes, which Detectron2's launch starts; return the exit code.

    Raises:
        UserError: Detectron2 or the recipe is missing or unsound, or there are too few GPUs.
    """
    require_detectron2()
    with quiet_detectron2():
        import torch
        from detectron2.engine import launch

        from d2_projects.engine.config import load
        from d2_projects.engine.processes import TIMEOUT

        load(recipe, overrides)  # so that what is wrong is found here
        if torch.cuda.is_available() and count > torch.cuda.device_count():
            raise UserError(f"--num-gpus {count}, but there are {torch.cuda.device_count()} CUDA devices")
        try:
            launch(_launched, count, dist_url="auto", args=(recipe, overrides), timeout=TIMEOUT)
        except torch.multiprocessing.ProcessExitedException as error:
            return error.exit_code
    return 0


def _launched(recipe: str, overrides: list[str]) -> None:
    """Be one of several processes."""

    @exits_cleanly
    def main() -> int:
        path = run(recipe, overrides)
        if path:
            print(path)
        return 0

    if code := main():
        raise SystemExit(code)


def said_once(build: Callable[[], Built]) -> Built:
    """Return what `build` does; of processes that have not joined yet, the first alone says what is wrong."""
    try:
        return build()
    except UserError:
        if int(os.environ.get("RANK", "0")) > 0:
            raise SystemExit(2) from None
        raise


def stop_request() -> contextlib.AbstractContextManager[StopRequest | None]:
    """Return what heeds signals, but not in processes that Detectron2's launch started.

    It ends them by a signal when one of them fails, and they must not survive that. (torchrun uses SIGKILL then.)
    """
    from torch import distributed

    launched = distributed.is_initialized() and "TORCHELASTIC_RUN_ID" not in os.environ
    return contextlib.nullcontext() if launched else StopRequest()


def train_and_record(config: DetectConfig, ranks: Ranks, request: StopRequest | None) -> Path | None:
    """Train, evaluate and record; errors and returned value as for `run`."""
    from d2_projects.data.coco import check, locate, registered
    from d2_projects.engine.train import point_at, train

    config, notes = config.for_gpus(ranks.size if ranks.device.type == "cuda" else 0)
    for note in notes:
        ranks.log(note)
    ranks.on_all(lambda: refuse_early(config, ranks))
    start = ranks.on_all(lambda: start_of(config))
    data = ranks.on_all(lambda: check(locate(config.cfg.data)))
    ranks.on_all(lambda: check_categories(config, data))
    protocol = protocol_of(config, data)
    identity = {"protocol": content_hash(protocol), "seed": config.cfg.train.seed, "init": start.record}
    if ranks.on_main(lambda: finished(config, identity)):
        ranks.log(f"{config.out} is finished already; resume=never starts it again")
        return config.out / RESULT if ranks.is_main else None

    if ranks.is_main:
        print(summary(config, data, start))
    with registered(data) as names:
        point_at(config.cfg, data, names)
        outcome = train(config.cfg, config.out, start.weights, ranks, request)
        if not ranks.is_main:
            return None
    result = record(config, data, protocol, start.record, outcome, ranks)
    shown = headline({name: metric.value for name, metric in result.metrics.items()})
    write_pictures(config.out, config, data, shown)
    print("  ".join(f"{name} {value:.1f}" for name, value in shown.items()))
    return result.save(config.out)


def evaluate_and_write(config: DetectConfig, ranks: Ranks) -> Path | None:
    """Evaluate a checkpoint and write EVALUATION into `out`; errors and returned value as for `run`."""
    from d2_projects.data.coco import check, locate, registered
    from d2_projects.engine.checkpoints import BEST
    from d2_projects.engine.train import evaluate_only, point_at

    of_run = {"last": LAST, "best": BEST}.get(config.weights)
    weights = config.out / CHECKPOINTS / of_run if of_run else Path(config.weights)
    ranks.on_all(lambda: must_exist(weights))
    data = ranks.on_all(lambda: check(locate(config.cfg.data)))
    with registered(data) as names:
        point_at(config.cfg, data, names)
        metrics = evaluate_only(config.cfg, config.out / EVALUATED, weights, ranks)
    if not ranks.is_main:
        return None
    values = metric_values(metrics)
    shown = headline(values)
    write_pictures(config.out / EVALUATED, config, data, shown)
    print("  ".join(f"{name} {value:.1f}" for name, value in shown.items()))
    write_json(config.out / EVALUATION, {
        "recipe": str(config.recipe), "weights": str(weights), "weights_sha256": sha256(weights),
        "data": data.name, "val_sha256": data.val.json_sha256, "metrics": values, "code_version": code_version(),
    })
    return config.out / EVALUATION


def must_exist(weights: Path) -> None:
    """Make sure that a checkpoint is there.

    Raises:
        UserError: it is not.
    """
    if not weights.is_file():
        raise UserError(f"weights '{weights}' do not exist: pass out=<a run's folder> or weights=<a file>")


def check_categories(config: DetectConfig, data: CocoData) -> None:
    """Make sure that a number of classes that was set by hand is the data's; else it follows the data.

    Raises:
        UserError: it is not.
    """
    key, categories = "model.roi_heads.num_classes", len(data.train.categories)
    if key in config.by_hand and config.cfg.model.roi_heads.num_classes != categories:
        raise UserError(f"{key}={config.cfg.model.roi_heads.num_classes}, but '{data.name}' has {categories} "
                        "categories; leave it out, and it follows the data")


def refuse_early(config: DetectConfig, ranks: Ranks) -> None:
    """Find in milliseconds what training would find only after the data and the model.

    Raises:
        UserError: the batch cannot be shared, or the device has not the precision.
    """
    from d2_projects.engine.train import share_batch
    from d2_projects.engine.trainer import mixed_precision

    share_batch(config.cfg, ranks.size)
    mixed_precision(config.cfg.train.amp, ranks.device)


def protocol_of(config: DetectConfig, data: CocoData) -> dict[str, Any]:
    """Return what two numbers must share to be comparable: the recipe and the data, by content."""
    return {
        "recipe": config.recipe.stem,
        "recipe_hash": content_hash(config.protocol_text()),
        "iterations": config.cfg.train.max_iter,
        "batch": config.cfg.dataloader.train.total_batch_size,
        "train_images": data.train.images,
        "val_images": data.val.images,
        "categories": len(data.val.categories),
        "train_sha256": data.train.json_sha256,
        "val_sha256": data.val.json_sha256,
    }


def finished(config: DetectConfig, identity: dict[str, Any]) -> bool:
    """Prepare the run folder; return True if it holds this very run's result already.

    Raises:
        UserError: the folder holds another run.
    """
    from d2_projects.engine.config import to_yaml

    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"out='{out}' is a file; pass out=<a folder>")
    if config.resume == "never":
        remove_run(out)
    identity = json.loads(json.dumps(identity, default=vars))
    if (out / IDENTITY).is_file():
        before = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if changed:
            gpus = "" if "protocol" not in changed else (
                " (the number of GPUs belongs to it, where the recipe was scaled)")
            raise UserError(f"'{out}' holds a run with another {' and '.join(changed)}{gpus}; pass another out=…, "
                            "or resume=never to replace it")
    elif (out / CHECKPOINTS / LAST).exists() or (out / RESULT).exists():
        raise UserError(f"'{out}' holds a run without {IDENTITY}, so what it trained is not known; "
                        "pass another out=…, or resume=never to replace it")
    write_json(out / IDENTITY, identity)
    write_text(out / CONFIG, to_yaml(config.cfg))
    return (out / RESULT).is_file()


def remove_run(out: Path) -> None:
    """Remove what a run of this task writes, and nothing else.

    Checkpoints go before what tells whose they are: whenever this is interrupted, no other run takes them up.
    """
    from d2_projects.engine.train import TTA
    from d2_projects.evaluation.outputs import OUTPUTS

    with contextlib.suppress(FileNotFoundError):
        (out / RESULT).unlink()
    for name in (CHECKPOINTS, "tensorboard", TTA, EVALUATED):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(out / name)
    for name in (*OUTPUTS, CONFIG, METRICS, LOG, EVALUATION, IDENTITY):
        with contextlib.suppress(FileNotFoundError):
            (out / name).unlink()


def summary(config: DetectConfig, data: CocoData, start: Start) -> str:
    """Return what is about to happen, in a few lines; the whole configuration is in the run folder."""
    cfg = config.cfg
    tensors = "" if start.weights is None else f" ({len(start.weights)} tensors, all of the backbone)"
    return "\n".join((
        f"recipe   {config.recipe}, resolved in {config.out / CONFIG}",
        f"data     {data.name}: {data.train.images} training and {data.val.images} validation pictures, "
        f"{len(data.train.categories)} categories",
        *(f"note     {note}" for note in data.notes),
        *(f"warning  {warning}" for warning in data.warnings),
        f"init     {config.init}{tensors}",
        f"train    {cfg.train.max_iter} iterations of {cfg.dataloader.train.total_batch_size} pictures, "
        f"lr {cfg.optimizer.lr:g}, seed {cfg.train.seed}",
    ))


def metric_values(metrics: dict[str, float]) -> dict[str, float]:
    """Return what is known, such as "bbox/AP", "segm/APs" or "tta/bbox/AP50".

    COCO's code calls a number undefined (nan) where there are no objects of a size, which is left out; and also the AP
    of a detector that finds nothing. The data was checked to have objects, so that is 0: they were all missed.
    """
    return {
        name: 0.0 if math.isnan(value) else value for name, value in metrics.items()
        if not math.isnan(value) or name.endswith(("/AP", "/AP50", "/AP75"))
    }


def headline(values: dict[str, float]) -> dict[str, float]:
    """Return the few numbers that are shown on the terminal and above the gallery."""
    return {name: value for name, value in values.items() if name.endswith(("/AP", "/AP50", "/AP75"))}


def write_pictures(out: Path, config: DetectConfig, data: CocoData, numbers: dict[str, float]) -> None:
    """Draw what the evaluation has written into `out`, and the course of training where there is a log."""
    from d2_projects.evaluation.outputs import write_course, write_gallery_of

    write_gallery_of(out, data.val.source, f"{config.recipe.stem}, init {config.init}, {out}", numbers)
    write_course(out)


def metrics_of(outcome: Outcome) -> dict[str, Metric]:
    """Return the metrics of the last state, and with "best/bbox/AP" that of the best one.

    The best one was chosen by what it is measured on, so it is for comparison with others that were chosen so.
    """
    values = metric_values(outcome.metrics)
    if outcome.best is not None:
        values["best/bbox/AP"] = max(outcome.best, values["bbox/AP"])
    return {name: Metric(value, UNIT) for name, value in values.items()}


def record(
    config: DetectConfig, data: CocoData, protocol: dict[str, Any], init: Initialization,
    outcome: Outcome, ranks: Ranks,
) -> ResultRecord:
    """Return the result record of a finished run."""
    cfg = config.cfg
    return ResultRecord(
        task=TASK,
        task_version=TASK_VERSION,
        model=backbone_of(cfg).name,
        init=init,
        metrics=metrics_of(outcome),
        main_metric="bbox/AP",
        protocol=protocol,
        seed=cfg.train.seed,
        epochs=cfg.train.max_iter * cfg.dataloader.train.total_batch_size / data.train.images,
        origin="smoke" if cfg.train.smoke else "measured",
        code_version=code_version(),
        environment=environment(),
        hardware=hardware(ranks.device, ranks.size),
        wall_seconds=round(outcome.seconds, 3),
        images_per_second=outcome.images_per_second,
        peak_memory_mib=outcome.peak_memory_mib,
        log=METRICS,  # relative to the run's folder, which may move
        checkpoint=f"{CHECKPOINTS}/{LAST}",
    )
