"""A pre-trained model with its decoder, as a run left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.checkpoint import LAST, load_file
from spark.errors import UserError
from spark.model import SparK, build_spark
from spark.pretrain_config import PretrainConfig
from spark.run_folder import CHECKPOINTS


class Pretrained(NamedTuple):
    """The model in eval mode, the configuration that it was trained with, and for how many steps."""

    model: SparK
    config: PretrainConfig
    step: int


def load_pretrained(path: Path, engine: str = "auto") -> Pretrained:
    """Load a run's folder, or one of the files in its `checkpoints/`.

    The engine need not be the one that it was trained with.

    Raises:
        UserError: missing or damaged, or no checkpoint of a pre-training.
    """
    if not path.exists():
        raise UserError(f"checkpoint '{path}' does not exist")
    file = path / CHECKPOINTS / LAST if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError(f"'{path}' is no folder of a pre-training: it has no {CHECKPOINTS}/{LAST}")
    if file.suffix == ".safetensors":
        raise UserError(f"'{file}' holds the encoder alone; pass the run's folder, where the decoder is too")
    content = load_file(file)
    if not (isinstance(content, dict) and {"model", "config", "step"} <= content.keys()):
        raise UserError(f"'{file}' is no checkpoint of `spark pretrain`; pass a run's folder")
    config = _config(content["config"], file)
    model = build_spark(
        config.model.name, in_chans=config.model.in_chans, mask_ratio=config.mask.ratio,
        decoder_width=config.decoder.width, engine=engine, mask_patch_size=config.mask.patch_size,
        options=config.model.options,
    )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"'{file}' does not fit its own configuration: {error}") from None
    return Pretrained(model.eval(), config, content["step"])


def _config(saved: Any, file: Path) -> PretrainConfig:
    """Give settings that are newer than the checkpoint their defaults."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), saved)
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{file}' has a configuration that this version does not know: {reason}") from None
    config = OmegaConf.to_object(merged)
    assert isinstance(config, PretrainConfig)
    return config
