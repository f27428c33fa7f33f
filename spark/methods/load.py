"""A pre-trained model with its decoder, as a run left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.methods.spark.model import SparK, build_spark
from spark.runs.checkpoint import LAST, load_file, read_latest
from spark.runs.folder import CHECKPOINTS


class Pretrained(NamedTuple):
    """The model in eval mode, the configuration that it was trained with, and for how many steps."""

    model: SparK
    config: PretrainConfig
    step: int


def load_pretrained(path: Path, engine: str = "auto") -> Pretrained:
    """Load a run's folder, or one of the files in its `checkpoints/`; a torn last one of a folder is passed over.

    The engine need not be the one that it was trained with.

    Raises:
        UserError: missing or damaged, or no checkpoint of a pre-training.
    """
    if not path.exists():
        raise UserError(f"checkpoint '{path}' does not exist")
    content = _read(path)
    if not (isinstance(content, dict) and {"model", "config", "step"} <= content.keys()):
        raise UserError(f"'{path}' is no checkpoint of `spark pretrain`; pass a run's folder")
    config = _config(content["config"], path)
    model = build_spark(
        config.model.name, in_chans=config.model.in_chans, mask_ratio=config.mask.ratio,
        decoder_width=config.decoder.width, engine=engine, mask_patch_size=config.mask.patch_size,
        options=config.model.options,
    )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"'{path}' does not fit its own configuration: {error}") from None
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
    """Give settings that are newer than the checkpoint their defaults."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), saved)
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{file}' has a configuration that this version does not know: {reason}") from None
    config = OmegaConf.to_object(merged)
    assert isinstance(config, PretrainConfig)
    return config
