"""What a run sees follows from the seed and the step alone; bad files are counted."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from spark.data.dataset import ImagePool, build_loader
from spark.data.file_list import FileSource
from spark.data.pixels import normalize
from spark.data.samplers import Draw, EpochSampler
from spark.data.source import list_images
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError


def batches(folder: Path, *, workers: int = 0, first_step: int = 0, seed: int = 0, epochs: int = 2) -> list[Tensor]:
    """Return all batches of four images of a training."""
    pool = ImagePool(folder, (32, 32), seed=seed)
    sampler = EpochSampler(len(pool), 4, epochs, seed, first_step)
    return [sample.image for sample in build_loader(pool, sampler, 4, workers, pin=False)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_any_number_of_workers_sees_the_same(pictures: Path) -> None:
    torch.manual_seed(1)
    alone = batches(pictures)
    torch.manual_seed(2)
    assert same(alone, batches(pictures, workers=1))
    assert alone[0].dtype == torch.uint8
    assert alone[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("first_step", [1, 3, 4])
def test_a_run_resumed_in_the_middle_sees_the_rest(pictures: Path, first_step: int) -> None:
    assert same(batches(pictures)[first_step:], batches(pictures, first_step=first_step))


def test_epochs_and_seeds_differ(pictures: Path) -> None:
    first = batches(pictures)
    assert len(first) == 6
    assert not same(first[:3], first[3:])
    assert not same(first, batches(pictures, seed=1))


def test_an_image_is_cropped_anew_in_every_epoch(pictures: Path) -> None:
    pool = ImagePool(pictures, (32, 32))
    assert pool[Draw(0, 5)].image.equal(pool[Draw(0, 5)].image)
    assert not pool[Draw(0, 5)].image.equal(pool[Draw(1, 5)].image)


def test_loading_leaves_the_random_generator_alone(pictures: Path) -> None:
    pool = ImagePool(pictures, (32, 32))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _ = pool[Draw(0, 0)]
    assert torch.get_rng_state().equal(before)


def test_an_epoch_shows_no_image_twice() -> None:
    draws = list(EpochSampler(10, 3, epochs=3, seed=0))
    assert len(draws) == 27
    for epoch in range(3):
        images = [draw.image for draw in draws if draw.epoch == epoch]
        assert len(set(images)) == len(images) == 9
    assert len({draw.image for draw in draws}) == 10


def test_a_batch_of_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch=8 is more than the 5 images"):
        EpochSampler(5, 8, 1, 0)


# Unreadable files


def damage(pool: ImagePool, *indices: int) -> None:
    assert isinstance(pool.source, FileSource)
    for index in indices:
        path = pool.source.path(index)
        path.write_bytes(path.read_bytes()[:60])


def missing(tmp_path: Path, count: int = 200) -> ImagePool:
    """Return a pool of so many images, of which the first is there."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(count)))
    return ImagePool(tmp_path / "list.txt", (8, 8))


def test_an_unreadable_image_is_replaced_and_told(pictures: Path) -> None:
    pool = ImagePool(pictures, (32, 32))
    damage(pool, 3)
    sample = pool[Draw(0, 3)]
    assert sample.unreadable == 3
    assert sample.image.shape == (3, 32, 32)
    assert pool[Draw(0, 4)].unreadable == -1


def test_a_damaged_folder_is_not_trained_on_as_black_images(tmp_path: Path) -> None:
    """Neighbours are often damaged together; what stands in for them is any other image, each epoch another."""
    for number in range(9):
        Image.new("L", (8, 8), 20 * number + 50).save(tmp_path / f"{number}.png")
    names = [*(f"lost{number}.png" for number in range(20)), *(f"{number % 9}.png" for number in range(40))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    pool = ImagePool(tmp_path / "list.txt", (8, 8))
    samples = [pool[Draw(epoch, index)] for epoch in range(2) for index in range(20)]
    assert [sample.unreadable for sample in samples] == [*range(20), *range(20)]
    seen = {int(sample.image.max()) for sample in samples}
    assert 0 not in seen
    assert len(seen) > 4


def test_unreadable_images_are_counted_once_with_a_warning(tmp_path: Path) -> None:
    counter = UnreadableFiles(missing(tmp_path))
    with pytest.warns(UserWarning, match=r"7\.png is skipped \(1 so far\)"):
        counter.note(torch.tensor([-1, 7, 7, -1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counter.note(torch.tensor([7, -1]))
    with pytest.warns(UserWarning, match=r"9\.png is skipped \(2 so far\)"):
        counter.note(torch.tensor([9]))
    assert counter.found == {7, 9}


def test_more_than_one_per_cent_stops_the_run(tmp_path: Path) -> None:
    counter = UnreadableFiles(missing(tmp_path))
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(UserError, match=r"3 of 200 images cannot be read \(more than 1%\)"),
    ):
        counter.note(torch.tensor([1, 2, 3]))


def test_two_of_few_images_never_stop_a_run_and_repaired_ones_are_forgotten(tmp_path: Path) -> None:
    report = tmp_path / "unreadable_files.txt"
    counter = UnreadableFiles(missing(tmp_path, 20), report)
    with pytest.warns(UserWarning, match="is skipped"):
        counter.note(torch.tensor([3, 19]))
    assert counter.summary().startswith("2 of 20")
    assert UnreadableFiles(missing(tmp_path, 19), report).summary().startswith("1 of 19")


def test_unreadable_images_are_named_in_a_report_that_outlives_a_resume(tmp_path: Path) -> None:
    pool, report = missing(tmp_path), tmp_path / "run" / "unreadable_files.txt"
    (tmp_path / "7.png").write_text("no picture")
    counter = UnreadableFiles(pool, report)
    assert counter.summary() == ""
    assert not report.exists()
    with pytest.warns(UserWarning, match="not an image in a known format"):
        counter.note(torch.tensor([7]))
    assert counter.summary() == f"1 of 200 images could not be read: see {report}"
    resumed = UnreadableFiles(pool, report)
    with pytest.warns(UserWarning, match="No such file"):
        resumed.note(torch.tensor([7, 150]))
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert [name for name, _ in lines] == [str(tmp_path / "150.png"), str(tmp_path / "7.png")]
    assert "No such file" in lines[0][1]
    assert resumed.summary().startswith("2 of 200")


def test_a_folder_of_nothing_readable_stops(pictures: Path) -> None:
    pool = ImagePool(pictures, (32, 32))
    damage(pool, *range(len(pool)))
    loader = build_loader(pool, EpochSampler(12, 4, 1, 0), 4, workers=1, pin=False)
    counter = UnreadableFiles(pool)

    def run() -> None:
        for sample in loader:
            counter.note(sample.unreadable)

    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(UserError, match="cannot be read") as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("existing", [False, True])
def test_a_missing_or_empty_folder_is_named(tmp_path: Path, existing: bool) -> None:
    folder = tmp_path / "nothing"
    if existing:
        folder.mkdir()
        (folder / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match="no images found below" if existing else "does not exist"):
        list_images(folder)


# Normalising


def test_normalising_gives_the_usual_numbers() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, (0.5, 0.4, 0.1), (0.25, 0.2, 0.1), torch.device("cpu"))
    torch.testing.assert_close(result.flatten(), torch.tensor([-2.0, 3.0, 1.0]))
