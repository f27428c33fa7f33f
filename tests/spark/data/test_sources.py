"""A folder, a file list, tar shards and a Hugging Face data set hold the same images, and train the same."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spark.data import shards
from spark.data.dataset import ImagePool, build_loader
from spark.data.samplers import Draw, EpochSampler
from spark.data.shards import expand_braces, read_index
from spark.data.source import list_images, open_source
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(pictures: Path, folder: Path, count: int = 3) -> str:
    """Pack pictures, with labels, into shards in WebDataset's manner; return the pattern of their names."""
    folder.mkdir()
    files = list_images(pictures)
    for number in range(count):
        with tarfile.open(folder / f"photos-{number:03d}.tar", "w") as tar:
            for file in files[number::count]:
                label = folder / "label"
                label.write_text("7")
                tar.add(label, f"{file.stem}.cls")
                tar.add(file, f"{file.stem}.png")
                label.unlink()
    return str(folder / f"photos-{{000..{count - 1:03d}}}.tar")


def dataset(file: Path, **columns: tuple[object, list[object]]) -> Any:
    """Return a Hugging Face data set of columns (feature, values)."""
    datasets = pytest.importorskip("datasets")
    # Not Dataset.from_dict, which cannot be pickled, and so not hashed, with some versions of pyarrow and Python.
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    with datasets.arrow_writer.ArrowWriter(path=str(file), features=features) as writer:
        for values in zip(*(values for _, values in columns.values()), strict=True):
            writer.write(features.encode_example(dict(zip(columns, values, strict=True))))
        writer.finalize()
    return datasets.Dataset.from_file(str(file))


def save_dataset(pictures: Path, folder: Path) -> str:
    datasets = pytest.importorskip("datasets")
    files = [str(file) for file in list_images(pictures)]
    label, image = (datasets.Value("int64"), [0] * len(files)), (datasets.Image(), files)
    dataset(folder.with_suffix(".arrow"), label=label, image=image).save_to_disk(str(folder))
    return str(folder)


def write_list(pictures: Path, destination: Path, table: bool = False) -> str:
    names = [str(file.relative_to(destination.parent)) for file in list_images(pictures)]
    lines = ["label,Path", *(f"7,{name}" for name in names)] if table else [*names, ""]
    destination.write_text("\n".join(lines), encoding="utf-8-sig")
    return str(destination)


def sources(pictures: Path, tmp_path: Path, kind: str) -> str:
    return {
        "folder": lambda: str(pictures),
        "list": lambda: write_list(pictures, tmp_path / "list.txt"),
        "table": lambda: write_list(pictures, tmp_path / "table.csv", table=True),
        "shards": lambda: pack(pictures, tmp_path / "shards"),
        "folder of shards": lambda: pack(pictures, tmp_path / "shards") and str(tmp_path / "shards"),
        "datasets": lambda: save_dataset(pictures, tmp_path / "rows"),
    }[kind]()


KINDS = ("folder", "list", "table", "shards", "folder of shards", "datasets")


def batches(root: str, *, workers: int = 0, first_step: int = 0) -> list[Tensor]:
    pool = ImagePool(root, (32, 32))
    loader = build_loader(pool, EpochSampler(len(pool), 4, 2, 0, first_step), 4, workers, pin=False)
    return [sample.image for sample in loader]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_holds_the_same_images_and_resumes_exactly(pictures: Path, tmp_path: Path, kind: str) -> None:
    root = sources(pictures, tmp_path, kind)
    pool, folder = ImagePool(root, (32, 32)), ImagePool(pictures, (32, 32))
    assert len(pool) == len(folder) == 12
    assert {pool.load(i).numpy().tobytes() for i in range(12)} == {folder.load(i).numpy().tobytes() for i in range(12)}
    assert len({pool.source.name(index) for index in range(12)}) == 12
    whole = batches(root)
    assert torch.equal(torch.stack(whole[2:]), torch.stack(batches(root, workers=1, first_step=2)))
    assert pool.identity == ImagePool(root, (32, 32)).identity


@pytest.mark.parametrize("kind", ["folder", "list", "shards", "datasets"])
def test_an_identity_survives_a_move_but_not_a_change(pictures: Path, tmp_path: Path, kind: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    pictures = pictures.rename(here / "pictures")
    root = sources(pictures, here, kind)
    before = open_source(root).identity
    here.rename(tmp_path / "there")
    moved = root.replace(str(here), str(tmp_path / "there"))
    assert open_source(moved).identity == before
    if kind != "datasets":  # that keeps its own book
        next((tmp_path / "there" / "pictures").rglob("*.png")).unlink()
        if kind == "list":
            write_list(tmp_path / "there" / "pictures", Path(moved))
        elif kind == "shards":
            pack(tmp_path / "there" / "pictures", tmp_path / "anew")
            moved = moved.replace("there/shards", "anew")
        assert open_source(moved).identity != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "image folder '.*nowhere' does not exist"),
        ("notes.pdf", "x", "neither a list"),
        ("photos.tar.gz", "x", "is compressed"),
        ("empty.txt", "\n", "names no images"),
        ("gone.txt", "a.png\n", "'.*a.png' does not exist"),
        ("table.csv", "file,label\na.png,3\n", "no column 'path', only file, label"),
        ("a-{0..3}.tar", None, r"'.*a-0\.tar' does not exist \(4 of 4 missing\)"),
        ("torn.tar", "x" * 1000, "damaged, cut short or compressed"),
    ],
)
def test_what_is_no_source_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / name)


def test_unreadable_images_of_a_shard_are_named(pictures: Path, tmp_path: Path) -> None:
    root = pack(pictures, tmp_path / "shards", count=1)
    shard = tmp_path / "shards" / "photos-000.tar"
    member = next(m for m in read_index(shard) if m.name == "02.png")
    with shard.open("r+b") as file:
        file.seek(member.offset)
        file.write(b"x" * member.size)
    pool = ImagePool(root, (32, 32))
    unreadable = [pool[Draw(0, index)].unreadable for index in range(12)]
    assert sum(index >= 0 for index in unreadable) == 1
    counter = UnreadableFiles(pool, tmp_path / "report.txt", spared=0)
    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(UserError, match="1 of 12 images"):
        counter.note(torch.tensor(unreadable))
    assert (tmp_path / "report.txt").read_text() == f"{shard}/02.png\tnot an image in a known format\n"


# Tar shards


def test_braces_expand_as_in_a_shell(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar", "b-09.tar", "b-10.tar"):
        (tmp_path / name).touch()
    paths = expand_braces(str(tmp_path / "{a,b}-{08..10}.tar"))
    assert [path.name for path in paths] == ["a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar", "b-09.tar", "b-10.tar"]
    assert [path.name for path in expand_braces(str(tmp_path / "b-{10..09}.tar"))] == ["b-10.tar", "b-09.tar"]


def test_headers_are_read_once(
    pictures: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pack(pictures, tmp_path / "shards")
    before = open_source(root)
    stored = list(cache.rglob("*.json"))
    assert len(stored) == 3
    with monkeypatch.context() as patch:
        patch.setattr(shards.tarfile, "open", lambda *_: pytest.fail("read again"))
        assert open_source(root).identity == before.identity
    for file in stored:
        file.write_text("[[torn")
    assert open_source(root).identity == before.identity
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert open_source(root).identity == before.identity


def test_a_shard_that_changed_is_read_again(pictures: Path, tmp_path: Path) -> None:
    root = pack(pictures, tmp_path / "shards", count=1)
    assert len(open_source(root)) == 12
    with tarfile.open(tmp_path / "shards" / "photos-000.tar", "a") as tar:
        tar.add(list_images(pictures)[0], "more.png")
    assert len(open_source(root)) == 13


def test_a_shard_cut_short_is_refused(pictures: Path, tmp_path: Path) -> None:
    root = pack(pictures, tmp_path / "shards", count=1)
    shard = tmp_path / "shards" / "photos-000.tar"
    last = read_index(shard)[-1]
    shard.write_bytes(shard.read_bytes()[: last.offset + last.size // 2])
    with pytest.raises(UserError, match=r"photos-000\.tar' is damaged, cut short"):
        open_source(root)


def test_images_beside_shards_win_with_a_warning(pictures: Path, tmp_path: Path) -> None:
    pack(pictures, pictures / "shards")
    with pytest.warns(UserWarning, match="12 images and 3 .tar shards: the shards are left out"):
        assert len(open_source(pictures)) == 12


# Hugging Face data sets


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"Hugging Face data set: reading it needs the package 'datasets': pip install"):
        open_source(tmp_path)


def test_the_training_split_and_the_image_column_are_found(pictures: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    binary = (datasets.Value("binary"), [file.read_bytes() for file in list_images(pictures)])
    rows = dataset(tmp_path / "a.arrow", photo=binary)
    datasets.DatasetDict({"test": rows, "train": rows}).save_to_disk(str(tmp_path / "two"))
    assert len(open_source(tmp_path / "two")) == len(open_source(tmp_path / "two" / "test")) == 12
    assert "train[3]" in open_source(tmp_path / "two").name(3)
    assert ImagePool(tmp_path / "two", (8, 8)).load(0).equal(ImagePool(pictures, (8, 8)).load(0))
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(str(tmp_path / "unclear"))
    with pytest.raises(UserError, match=r"has the splits a, b; choose one by data\.root="):
        open_source(tmp_path / "unclear")
    dataset(tmp_path / "b.arrow", photo=binary, mask=binary).save_to_disk(str(tmp_path / "columns"))
    with pytest.raises(UserError, match=r"several columns of images \(photo, mask\)"):
        open_source(tmp_path / "columns")
    dataset(tmp_path / "c.arrow", label=(datasets.Value("int64"), [0, 1])).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no column of images, among label"):
        open_source(tmp_path / "none")


# Other numbers of channels


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_other_numbers_of_channels_are_augmented(tmp_path: Path, channels: int) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (2, 40, 50, channels), dtype=np.uint8)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels[number])
    pool = ImagePool(tmp_path, (32, 48), channels=channels)
    sample = pool[Draw(0, 1)]
    assert sample.image.shape == (channels, 32, 48)
    assert sample.image.dtype == torch.uint8
    assert sample.unreadable == -1
    assert pool.load(1).permute(1, 2, 0).numpy().tobytes() == pixels[1].tobytes()


def test_arrays_are_no_images_where_colour_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.zeros(3))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(open_source(tmp_path)) == 1


# Links


def test_links_to_class_folders_are_followed_and_those_upwards_are_not(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "class").symlink_to(pictures)
    (root / "again").symlink_to(root)
    (root / "deep" / "above").symlink_to(root)
    assert len(list_images(root)) == len(list_images(pictures)) == 12
