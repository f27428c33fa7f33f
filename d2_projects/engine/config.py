"""A detection recipe (Detectron2 LazyConfig) with dotted overrides, read as strictly as our own recipes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from d2_projects.options import TestOptions, TrainOptions, called, complete
from d2_projects.project import Project
from d2_projects.solver.scaling import scaled, set_by_hand
from spark.config.identity import deciding, first_names
from spark.config.overrides import split_overrides
from spark.config.recipe import read_text
from spark.config.values import Count, Place, shown, wrong_value, wrong_values
from spark.errors import UserError, nearest

SHORTHANDS = {"out": "train.output_dir", "seed": "train.seed", "data": "data.root"}
SCRATCH = "scratch"
TOTAL_BATCH = "dataloader.train.total_batch_size"
# Beside the recipe's own keys: whose weights, go on or start again, only evaluate, and then which checkpoint.
OPTIONS = {"init": SCRATCH, "resume": "auto", "eval_only": "false", "weights": "last"}
# Of a recipe that names none: at first there was no other.
PROJECT = OmegaConf.create({"_target_": "d2_projects.instance_segmentation.InstanceSegmentation"})
# Where callables of our recipes are now, and the names under which protocols were first recorded with them.
MOVED = {
    "d2_projects.solver.layer_decay.resnet_layer_decay": "d2_projects.optim.resnet_layer_decay",
    "d2_projects.solver.layer_decay.timm_parameter_groups": "d2_projects.optim.timm_parameter_groups",
    "d2_projects.modeling.timm_backbone.TimmBackbone": "d2_projects.timm_backbone.TimmBackbone",
    "d2_projects.modeling.res5.with_norm": "d2_projects.res5.with_norm",
}
# What does not decide whether two numbers may be compared. (The seed and the initialization are recorded
# beside the protocol; the data is identified by its content; of scaling, the results are in the protocol.)
NOT_PROTOCOL = (
    "data", "train.output_dir", "train.seed", "train.device", "train.log_period", "train.checkpointer",
    "train.eval_period", "train.auto_scale", "train.reference_world_size", "test",
    "dataloader.train.num_workers", "dataloader.test.num_workers", "dataloader.evaluator",
)


@dataclass(frozen=True)
class DetectConfig:
    """A recipe ready to run."""

    recipe: Path
    cfg: DictConfig
    project: Project[Any]
    init: str  # "scratch" or an exported encoder
    resume: str  # "auto": go on where the run folder stands; "never": start again
    eval_only: bool = False
    weights: str = "last"  # to evaluate: "last" or "best" of the run's, or a file
    by_hand: frozenset[str] = frozenset()  # keys that were overridden

    def for_gpus(self, count: int) -> tuple[DetectConfig, list[str]]:
        """Return this for so many GPUs, which may be fewer than the recipe is meant for, and lines on what changed."""
        cfg, changes = scaled(self.cfg, count, self.by_hand)
        lines = [f"scaled   {change}" for change in changes]
        if kept := set_by_hand(self.cfg, count, self.by_hand):
            meant = self.cfg.train.reference_world_size
            lines.append(f"note     the recipe is meant for {meant} GPUs, and not scaled to {count}, because "
                         f"{', '.join(kept)} was set by hand")
        return dataclasses.replace(self, cfg=cfg), lines

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.cfg.train.output_dir)

    def protocol_text(self) -> str:
        """Return everything in the recipe that decides whether two numbers are comparable, as YAML."""
        settings = OmegaConf.to_container(self.cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
        decisive = first_names(deciding(settings, NOT_PROTOCOL), MOVED)
        return to_yaml(OmegaConf.create(decisive, flags={"allow_objects": True}))


def to_yaml(cfg: DictConfig) -> str:
    """Return a LazyConfig as YAML; callables become their dotted names."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        LazyConfig.save(cfg, str(file))
        return file.read_text(encoding="utf-8")


def load(recipe: str, overrides: Sequence[str]) -> DetectConfig:
    """Read a recipe and apply `key=value` overrides.

    Besides the recipe's own keys there are SHORTHANDS and OPTIONS: `init` (scratch, or an exported encoder's folder),
    `resume` (auto or never), `eval_only` (true or false) and `weights` (last, best or a file).

    Raises:
        UserError: one message that lists every unknown key and unsound value.
    """
    cfg = _read(Path(recipe))
    options = dict(OPTIONS)
    known = sorted(_names(OmegaConf.to_container(cfg, resolve=False)))
    problems, by_hand = [], set()
    for key, text in split_overrides(overrides):
        target = SHORTHANDS.get(key, key)
        if key in options:
            options[key] = text
        elif target not in known:
            problems.append(f"unknown key '{key}'.{nearest(key, [*known, *SHORTHANDS, *options])}")
        else:
            by_hand.add(target)
            problems.extend(_update(cfg, target, text))
    problems.extend(_unsound(cfg, options) if not problems else [])
    if problems:
        raise UserError(f"{recipe}: " + "; ".join(problems))
    return DetectConfig(
        Path(recipe), cfg, project_of(cfg), options["init"], options["resume"], options["eval_only"] == "true",
        options["weights"], frozenset(by_hand),
    )


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"recipe '{path}' does not exist.{nearest(str(path), siblings)}")
    if path.suffix != ".py":
        raise UserError(f"recipe '{path}' is not a LazyConfig: a detection recipe is a Python file")
    try:
        cfg = LazyConfig.load(str(path))
    except (Exception, SystemExit) as error:  # a recipe is a program: whatever it raises is its author's to read
        raise UserError(f"recipe '{path}' fails with {type(error).__name__}: {error}") from error
    missing = {"data", "train", "model", "dataloader", "optimizer", "lr_multiplier"} - set(cfg)
    if missing:
        raise UserError(f"recipe '{path}' does not define {', '.join(sorted(missing))}")
    if "_target_" in cfg.get("project", {}) and called(cfg.project) is called(PROJECT):
        del cfg["project"]  # unsaid, as in the protocols and run folders of when it could not be said
    return complete(cfg, project_of(cfg).data_options)


def project_of(cfg: DictConfig) -> Project[Any]:
    """Return the project that a recipe names, or the PROJECT of those that name none.

    Raises:
        UserError: what it names is no project.
    """
    project = instantiate(cfg.get("project", PROJECT))
    if not isinstance(project, Project):
        raise UserError(f"the recipe's project is a {type(project).__name__}, not a d2_projects.project.Project")
    return project


def _names(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every value, inside lists too (`augmentations.0.max_size`)."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in children:
        if key != "_target_":
            yield f"{prefix}{key}"
            if isinstance(value, dict | list):
                yield from _names(value, f"{prefix}{key}.")


def _update(cfg: DictConfig, key: str, text: str) -> list[str]:
    """Set a value that is written as YAML, and return what is wrong with it."""
    before = OmegaConf.select(cfg, key)
    expected = type(before)
    try:
        value = read_text(text, expected)
    except ValueError as error:
        return [f"{shown(f'{key}={text}')}: {error}"]
    # A whole number may stand where a fraction is meant, but True is no number.
    fits = type(value) is expected or (expected is float and type(value) is int)
    if expected in (bool, int, float, str) and not fits:
        return [f"{key}={shown(text)}: expected {expected.__name__}, such as {before}"]
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except OmegaConfBaseException as error:
        return [f"{key}={shown(text)}: {str(error).splitlines()[0]}"]
    return []


def _unsound(cfg: DictConfig, options: dict[str, str]) -> Iterator[str]:
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    declared = {"data": project_of(cfg).data_options, "train": TrainOptions, "test": TestOptions}
    for group, schema in declared.items():
        yield from wrong_values(settings.pop(group), schema, f"{group}.")
    for key, value in settings.items():
        yield from wrong_value(key, value)
    yield from wrong_value(TOTAL_BATCH, OmegaConf.select(cfg, TOTAL_BATCH), Count)
    for name, value in options.items():
        yield from wrong_value(name, value, Place)
    if cfg.test.tta and not cfg.test.tta_scales:
        yield "test.tta_scales must be one or more positive numbers"
    for key, allowed in (("resume", ("auto", "never")), ("eval_only", ("true", "false"))):
        if options[key] not in allowed:
            yield f"{key}={shown(options[key])}: expected {' or '.join(allowed)}"
    if options["weights"] != OPTIONS["weights"] and options["eval_only"] != "true":
        yield "weights=… is what eval_only=true evaluates; training begins with init=…"
