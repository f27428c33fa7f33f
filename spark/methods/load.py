"""A pre-trained model with its decoder, as a run left it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.backbones.names import require_trust
from spark.config.choices import DEFAULT_METHOD
from spark.config.pretrain import PretrainConfig
from spark.config.recipe import literal, with_values
from spark.errors import UserError
from spark.methods.base import Method
from spark.methods.registry import build_method, config_class
from spark.runs.checkpoint import LAST, load_file, read_latest
from spark.runs.folder import CHECKPOINTS
from spark.utils.state_dict import load_strictly


class Pretrained(NamedTuple):
    """The model in eval mode, the configuration that it was trained with, and for how many steps."""

    model: Method
    config: PretrainConfig
    step: int


def load_pretrained(
    path: Path | str, changes: Mapping[str, Any] | None = None, trust: Collection[str] = ()
) -> Pretrained:
    """Load a run's folder, or one of the files in its `checkpoints/`; a torn last one of a folder is passed over.

    Nothing is dropped at random in the model, however it was trained; it computes with the training's engine.

    Args:
        path: of either.
        changes: settings by dotted key that shall differ from the training's, such as {"engine": "masked"}.
        trust: own networks, such as "net.py:Net", whose code may run if it is the checkpoint that names it.

    Raises:
        UserError: missing or damaged, no checkpoint of a pre-training, or of a network that is not trusted.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint '{path}' does not exist")
    content = _read(path)
    if not (isinstance(content, dict) and {"model", "config", "step"} <= content.keys()):
        raise UserError(f"'{path}' is no checkpoint of `spark pretrain`; pass a run's folder")
    config = _config(content["config"], path)
    require_trust(config.model.name, trust, f"'{path}'")
    model = build_method(with_values(config, {"model.drop_path": 0.0, **(changes or {})}))
    load_strictly(model, content["model"], f"'{path}'", "its own configuration")
    return Pretrained(model.eval(), config, content["step"])


def _read(path: Path) -> Any:
    """Return the content of a file, or of a folder's newest whole checkpoint."""
    if path.suffix == ".safetensors":
        raise UserError(f"'{path}' holds the encoder alone; pass the run's folder, where the decoder is too")
    if not path.is_dir():
        return load_file(path)
    content, _ = read_latest(path / CHECKPOINTS)
    if content is None:
        raise UserError(f"'{path}' is no folder of a pre-training: it has no {CHECKPOINTS}/{LAST}")
    return content


def _config(saved: Any, file: Path) -> PretrainConfig:
    """Give settings that are newer than the checkpoint their defaults; the others are what they say, and no more."""
    try:
        schema = config_class(saved.get("method", DEFAULT_METHOD))
        merged = OmegaConf.merge(OmegaConf.structured(schema), literal(saved))
    except (AttributeError, OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{file}' has a configuration that this version does not know: {reason}") from None
    config = OmegaConf.to_object(merged)
    assert isinstance(config, PretrainConfig)
    return config
