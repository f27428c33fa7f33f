"""Labeled images from folders and shards, and the subsets that a seed chooses."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from colored import write_folders, write_shard

from eval_suite.classification.augment import PairMixer
from eval_suite.classification.data import TrainSampler
from eval_suite.classification.finetune_config import AugmentConfig, LabelsConfig
from eval_suite.classification.labeled import LabeledSource, limited, open_labeled, open_splits
from spark.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=20, val=2)


@pytest.fixture(scope="module")
def train(images: Path) -> LabeledSource:
    return open_labeled(str(images / "train"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_folders_shards_and_numbers_beside_images_say_the_same(
    images: Path, train: LabeledSource, tmp_path: Path
) -> None:
    write_shard(tmp_path / "folders.tar", images / "train")
    write_shard(tmp_path / "numbers.tar", images / "train", numbers=True)
    folders, numbers = open_labeled(f"{tmp_path}/folders.tar"), open_labeled(str(tmp_path / "numbers.tar"))
    assert train.classes == folders.classes == ["blue", "green", "red"]
    assert numbers.classes == ["0", "1", "2"]
    for index in (0, 25, 59):
        assert train.label(index) == folders.label(index) == numbers.label(index) == index // 20
        assert train.load(index) == folders.load(index) == numbers.load(index)


def test_the_outermost_folders_are_the_classes_in_shards_too(images: Path, tmp_path: Path) -> None:
    """As in Tiny ImageNet, where a class folder has a folder `images`."""
    for label in ("red", "blue"):
        shutil.copytree(images / "val" / label, tmp_path / "val" / label / "images")
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "val", "tiny/val")
    folders, shard = open_labeled(str(tmp_path / "val")), open_labeled(str(tmp_path / "val.tar"))
    assert folders.classes == shard.classes == ["blue", "red"]
    shutil.rmtree(tmp_path / "val" / "red")
    with pytest.raises(UserError, match=r"one class only, 'blue'"):
        open_splits(str(tmp_path / "val"), str(tmp_path / "val"))


def test_folders_of_shards_are_not_taken_for_classes(images: Path, tmp_path: Path) -> None:
    for number, labels in enumerate((("red", "blue"), ("red", "green"))):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for label in labels:
                tar.add(images / "val" / label, f"part-{number}/{label}")
    with pytest.raises(UserError, match=r"one folder each, with several inside \('part-0'\)"):
        open_labeled(f"{tmp_path}/{{0..1}}.tar")
    for label in ("red", "blue"):
        with tarfile.open(tmp_path / f"{label}.tar", "w") as tar:
            tar.add(images / "val" / label, f"{label}/images")
    assert open_labeled(f"{tmp_path}/{{red,blue}}.tar").classes == ["blue", "red"]


def test_class_numbers_are_ordered_as_numbers(images: Path, tmp_path: Path) -> None:
    for number in (2, 10, 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "0.png").write_bytes((images / "val/red/00.png").read_bytes())
    assert open_labeled(str(tmp_path)).classes == ["1", "2", "10"]


def test_images_without_a_class_are_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "stray.png").write_bytes((images / "val/red/00.png").read_bytes())
    with pytest.raises(UserError, match=r"stray\.png' is in no class folder"):
        open_labeled(str(tmp_path))
    (tmp_path / "list.txt").write_text("stray.png\n")
    with pytest.raises(UserError, match="tells no classes"):
        open_labeled(str(tmp_path / "list.txt"))


def test_splits_of_other_classes_are_refused(images: Path, tmp_path: Path) -> None:
    write_folders(tmp_path, train=1, val=1, labels=("blue", "red"))
    with pytest.raises(UserError, match=r"classes differ between .*: green"):
        open_splits(str(images / "train"), str(tmp_path / "val"))


@pytest.mark.parametrize(("labels", "count"), [
    (LabelsConfig(per_class=3), 3), (LabelsConfig(fraction=0.25), 5), (LabelsConfig(fraction=0.001), 1),
])
def test_a_subset_is_balanced_and_follows_from_the_seed(
    train: LabeledSource, labels: LabelsConfig, count: int
) -> None:
    subsets = [limited(train, labels, seed) for seed in (0, 0, 1)]
    for subset in subsets:
        assert subset.counts().tolist() == [count] * 3
    first, again, other = (subset.indices.tolist() for subset in subsets)
    assert first == again != other
    assert subsets[0].identity == subsets[1].identity != subsets[2].identity
    assert [subsets[0].label(index) for index in range(3 * count)] == sorted([0, 1, 2] * count)


def test_more_labels_contain_fewer_of_the_same_seed(train: LabeledSource) -> None:
    few, more = (limited(train, LabelsConfig(per_class=count), seed=7) for count in (2, 5))
    assert set(few.indices) < set(more.indices)
    assert len(more.without(few)) == 9


def test_a_class_with_too_few_images_is_named(train: LabeledSource) -> None:
    with pytest.raises(UserError, match="class 'blue' has 20 images only"):
        limited(train, LabelsConfig(per_class=21), seed=0)


def test_copies_of_an_image_are_never_blended_with_each_other() -> None:
    draws = list(TrainSampler(images=32, batch=12, epochs=1, seed=0, repeats=3))
    pairs = [(one.image, other.image) for one, other in zip(draws[::2], draws[1::2], strict=True)]
    assert len(draws) == 24
    assert all(one != other for one, other in pairs)
    assert len({draw.image for draw in draws}) == 8
    assert len({draw.seed for draw in draws}) == 24


def test_blending_does_not_depend_on_how_a_batch_is_shared() -> None:
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    mix = PairMixer(AugmentConfig(mixup=0.8, cutmix=1.0, mix_group=4), classes=8, seed=3)
    whole = mix(images, labels, 5, 0)
    halves = [mix(images[part : part + 4], labels[part : part + 4], 5, part) for part in (0, 4)]
    for at_once, shared in zip(whole, zip(*halves, strict=True), strict=True):
        assert torch.equal(at_once, torch.cat(shared))
    blended = whole[1].topk(2).indices.sort().values  # neighbours, and nobody else
    assert {tuple(pair) for pair in blended.tolist()} == {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert not torch.equal(whole[0], mix(images, labels, 6, 0)[0])
    parts = [mix(images[part : part + 2], labels[part : part + 2], 5, part) for part in (0, 2, 4, 6)]
    thirds = [mix(images[part], labels[part], 5, part.start) for part in (slice(0, 6), slice(6, 8))]
    for several in (parts, thirds):  # not whole groups, within which the order is another
        for at_once, shared in zip(whole, zip(*several, strict=True), strict=True):
            assert sorted(at_once.flatten(1).tolist()) == sorted(torch.cat(shared).flatten(1).tolist())
