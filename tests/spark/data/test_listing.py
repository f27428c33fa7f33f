"""What is data below a folder, and what is not; a listing from the cache is what a new one would be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from spark.data import listing
from spark.data.listing import list_files
from spark.data.source import open_source

IMAGES = (".png", ".jpg")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    touch(tmp_path / "photos", "b/1.png", "b c/2.png", "a/sub/3.JPG", "0.png", "a/notes.txt")
    return tmp_path / "photos"


def test_names_are_sorted_by_their_parts(photos: Path) -> None:
    expected = sorted(path.relative_to(photos) for path in photos.rglob("*") if path.suffix.lower() in IMAGES)
    assert list_files(photos, IMAGES) == [str(path) for path in expected]


@pytest.mark.parametrize(
    "names",
    [
        (".ipynb_checkpoints/1-checkpoint.png", "b/.ipynb_checkpoints/1.png", ".git/x.png", "b/.thumb.png"),
        ("@eaDir/1.png/SYNO_THUMB.jpg", "b/@eaDir/1.png"),
        ("__MACOSX/b/1.png", "b/__MACOSX/._1.png"),
        ("runs/x/config.yaml", "runs/x/metrics.jsonl", "runs/x/curve.png", "runs/x/reconstructions/epoch_00001.png"),
        ("x/config.yaml", "x/checkpoints/last.pt", "x/visualize/0.png"),
        ("s/graph.json", "s/report/1.png", "s/node/config.yaml", "s/node/result.json", "s/node/x.png"),
    ],
)
def test_what_is_not_data_is_left_out(names: tuple[str, ...], photos: Path) -> None:
    before, identity = list_files(photos, IMAGES), open_source(photos).identity
    touch(photos, *names)
    assert list_files(photos, IMAGES) == before
    assert open_source(photos).identity == identity


def test_a_folder_with_a_configuration_alone_is_data(photos: Path) -> None:
    touch(photos, "a/config.yaml", "config.yaml", "metrics.jsonl")
    assert "a/sub/3.JPG" in list_files(photos, IMAGES)


class TestCached:
    @pytest.fixture(autouse=True)
    def _kept(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep listings of any size, at once."""
        monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
        monkeypatch.setattr(listing, "SETTLED_S", 0.02)
        time.sleep(0.05)
        list_files(photos, IMAGES)

    def test_nothing_is_listed_again(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = list_files(photos, IMAGES)
        monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} is listed again"))
        assert list_files(photos, IMAGES) == expected

    @pytest.mark.parametrize("backdated", [False, True])
    def test_changes_are_seen(self, backdated: bool, photos: Path) -> None:
        times = os.stat(photos / "b")
        touch(photos, "b/new.png", "new/4.png")
        (photos / "0.png").unlink()
        (photos / "b" / "1.png").rename(photos / "b" / "5.png")
        if backdated:  # as tools do that copy times
            os.utime(photos / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
        assert list_files(photos, IMAGES) == ["a/sub/3.JPG", "b/5.png", "b/new.png", "b c/2.png", "new/4.png"]

    def test_another_folder_in_its_place_is_seen(self, photos: Path) -> None:
        photos.rename(photos.with_name("before"))
        touch(photos, "b/other.png")
        assert list_files(photos, IMAGES) == ["b/other.png"]

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"": 3}', '{"": [1, 2]}', '{"": [[], ["x"], [3]]}'])
    def test_a_damaged_cache_is_none(self, text: str, photos: Path, tmp_path: Path) -> None:
        expected = list_files(photos, IMAGES)
        (cache,) = (tmp_path / "cache").rglob("*.json")
        cache.write_text(text)
        assert list_files(photos, IMAGES) == expected
        cache.unlink()


def test_a_folder_that_changes_just_now_is_not_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    list_files(photos, IMAGES)
    assert not list((tmp_path / "cache").rglob("*.json"))
