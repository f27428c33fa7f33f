"""`spark visualize reconstruct`: what a pre-trained model makes of images that it sees a part of."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from spark.data.center_crop import read_center
from spark.data.pixels import denormalize, normalize
from spark.data.source import image_suffixes, list_images
from spark.errors import UserError
from spark.masking import enlarge
from spark.methods.base import Method
from spark.methods.load import Pretrained, load_pretrained
from spark.utils.device import choose_device
from spark.utils.files import atomic_path, write_text
from spark.utils.lock import sole_writer
from spark.utils.printable import printable
from spark.utils.provenance import code_version
from spark.visualize.contact_sheet import Row, contact_sheet, enlargement
from spark.visualize.grid import GRAY, displayable

COLUMNS = ("original", "masked", "reconstruction", "visible pasted")
PER_FOLDER = 8  # images that stand for a folder


class Attempt(NamedTuple):
    """A image under one mask: its loss, and what the last three of COLUMNS show."""

    ratio: float
    seed: int
    loss: float
    panels: tuple[Image.Image, Image.Image, Image.Image]


class Subject(NamedTuple):
    """A image and what the model made of it under every mask."""

    name: str
    original: Image.Image
    attempts: list[Attempt]


def visualize_reconstructions(
    checkpoint: Path, images: Sequence[Path], seeds: Sequence[int], ratios: Sequence[float], out: Path, device: str,
    trust: Collection[str] = (),
) -> tuple[Path, Path]:
    """Draw every image under every mask ratio and seed into a PNG and a page; return their paths.

    Args:
        checkpoint: a run's folder or its checkpoint.
        images: files, or folders that some of their images stand for.
        seeds: of the masks; a seed gives every image the same mask.
        ratios: shares of patches that are hidden; none: the one of the training.
        out: folder.
        device: "auto", "cpu" or "cuda".
        trust: own networks that the checkpoint may name.

    Raises:
        UserError: the checkpoint or an image cannot be read, or a ratio hides all or nothing.
    """
    if min(seeds) < 0:
        raise UserError(f"--seeds {min(seeds)} must not be negative")
    pretrained = load_pretrained(checkpoint, trust=trust)
    files = _expand(images, image_suffixes(pretrained.config.model.in_chans))
    model, config = pretrained.model.to(choose_device(device)), pretrained.config
    height, width = config.data.input_size
    ratios = ratios or [model.mask_ratio]
    for ratio in ratios:  # before any work is done
        draw_mask(model, (height, width), ratio, seed=0)
    subjects = [_subject(pretrained, file, seeds, ratios) for file in files]
    rows = [
        Row(
            (subject.name, f"{attempt.ratio:.0%} masked, seed {attempt.seed}", f"loss {attempt.loss:.3f}"),
            (subject.original, *attempt.panels),
        )
        for subject in subjects
        for attempt in subject.attempts
    ]
    with sole_writer(out):
        with atomic_path(out / "reconstruct.png") as temporary:
            contact_sheet(COLUMNS, rows).save(temporary)
        write_text(out / "reconstruct.html", _page(pretrained, checkpoint, subjects))
    return out / "reconstruct.png", out / "reconstruct.html"


@torch.no_grad()
def attempt(
    model: Method, images: Tensor, ratio: float, seed: int, mean: Sequence[float], std: Sequence[float]
) -> Attempt:
    """Hide patches of one normalised image [1, C, H, W] and let the model (in eval mode) draw them."""
    output = model(images, draw_mask(model, images.shape[-2:], ratio, seed))
    pasted = model.reconstruct(images, output)
    drawn = model.reconstruct(images, output._replace(mask=torch.zeros_like(output.mask)))  # as if none were visible
    visible = enlarge(output.mask == 1, *images.shape[-2:])
    original, drawn, pasted = (denormalize(shown, mean, std) for shown in (images, drawn, pasted))
    masked = torch.where(visible, original, GRAY)
    panels = (_to_pil(masked), _to_pil(drawn), _to_pil(pasted))
    return Attempt(ratio, seed, output.loss.item(), panels)


def draw_mask(model: Method, size: Sequence[int], ratio: float, seed: int) -> Tensor:
    """Return a mask [1, 1, rows, columns] of an image that has another ratio than in training.

    Raises:
        UserError: the ratio hides all patches or none, or the image is not made of whole ones.
    """
    return model.draw_mask(1, model.grid(size[0], size[1]), torch.Generator().manual_seed(seed), ratio)


def _to_pil(pixels_1CHW: Tensor) -> Image.Image:
    return to_pil_image(displayable(pixels_1CHW)[0].float().cpu())


def _subject(pretrained: Pretrained, file: Path, seeds: Sequence[int], ratios: Sequence[float]) -> Subject:
    model, config = pretrained.model, pretrained.config
    height, width = config.data.input_size
    pixels = read_center(file, config.model.in_chans, height, width)[None]
    mean, std = config.data.mean, config.data.std
    images = normalize(pixels, mean, std, next(model.parameters()).device)
    attempts = [attempt(model, images, ratio, seed, mean, std) for ratio in ratios for seed in seeds]
    return Subject(printable(file.name), _to_pil(pixels / 255), attempts)


def _expand(paths: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Let a few images, evenly spread, stand for a folder."""
    files: list[Path] = []
    for path in paths:
        found = list_images(path, suffixes) if path.is_dir() else [path]
        count = min(PER_FOLDER, len(found))
        files += [found[number * len(found) // count] for number in range(count)]
    for file in files:
        if not file.is_file():
            raise UserError(f"image '{file}' does not exist")
    return files


def _page(pretrained: Pretrained, checkpoint: Path, subjects: list[Subject]) -> str:
    """Write one page that carries its images inside."""
    environment = Environment(loader=PackageLoader("spark"), autoescape=True, undefined=StrictUndefined)
    environment.filters["uri"] = _data_uri
    attempts = subjects[0].attempts
    return environment.get_template("reconstruct.html").render(
        checkpoint=checkpoint, config=pretrained.config, mask_ratio=pretrained.model.mask_ratio,
        step=pretrained.step, subjects=subjects, columns=COLUMNS,
        choices={"ratio": _unique(a.ratio for a in attempts), "seed": _unique(a.seed for a in attempts)},
        small=enlargement(subjects[0].original.size) > 1, code_version=code_version(),
    )


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _data_uri(image: Image.Image) -> str:
    """Small images are shown enlarged, where JPEG's blocks would be seen."""
    kind = "PNG" if enlargement(image.size) > 1 else "JPEG"
    stream = io.BytesIO()
    image.save(stream, kind, quality=92)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
