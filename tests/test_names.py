"""Names of files that are no UTF-8, hold line ends, or look like something else are taken as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_suite.cli
import spark.cli
from spark.config.recipe import value_in
from spark.errors import UserError, in_a_line
from spark.methods.registry import read_recipe
from spark.utils.plots import plain
from spark.utils.printable import counted, printable

ODD = os.fsdecode(b"n\xff\n<b>$x_$")
TINY = ["device=cpu", "data.workers=0", "model.name=test_resnet"]
PRETRAINING = [
    "model.drop_path=0", "data.input_size=[64,64]", "decoder.width=32", "train.batch=13", "train.epochs=1",
    "train.warmup_epochs=0",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with labeled images in folders of odd names, one of which is damaged."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for split in ("train", "val"):
        for label in ("a\udcff", "b\nc"):
            folder = Path(ODD, split, label)
            folder.mkdir(parents=True)
            for number in range(3):
                with open(folder / f"\udcff{number}\n.png", "wb") as file:
                    Image.fromarray(pixels).save(file, "PNG")
    Path(ODD, "broken\n.png").write_text("no image")
    Path("empty.yaml").write_text("{}")
    return tmp_path


def test_files_of_any_name_are_read_and_told_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spark_main, eval_main = spark.cli.main, eval_suite.cli.main
    assert spark_main(["pretrain", "empty.yaml", *TINY, *PRETRAINING, f"data.root={ODD}", "out=runs/a"]) == 0
    told = Path("runs/a/unreadable_files.txt").read_text(encoding="utf-8").splitlines()
    assert told == ["n\\udcff\\n<b>$x_$/broken\\n.png\tnot an image in a known format"]
    picture = f"{ODD}/train/a\udcff/\udcff0\n.png"
    assert spark_main(["visualize", "reconstruct", "runs/a", picture, "--out", f"{ODD}/drawn"]) == 0
    assert "0\\n.png" in Path(ODD, "drawn", "reconstruct.html").read_text(encoding="utf-8")
    knn = ["knn", "empty.yaml", *TINY, f"data.root={ODD}", "out=runs/b", "init=runs/a", "neighbours=[1]"]
    assert eval_main([*knn, "data.input_size=32"]) == 0
    assert eval_main(["report", "runs", "--out", f"{ODD}/report"]) == 0
    assert Path(ODD, "report", "report.html").is_file()
    assert eval_main(["diff", "runs/b", "empty.yaml"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_written_has_a_name_that_libraries_take(place: Path) -> None:
    with pytest.raises(UserError, match=r"^out=a\udcff must not hold bytes that are no UTF-8$"):
        read_recipe(None, ["data.root=photos", "out=a\udcff"])


@pytest.mark.parametrize("name", ["2024-01-01", "1e3", "007", "true", "[a]", "a: b", "{x", "1_000", "12:30:45", ODD])
def test_paths_are_taken_as_they_stand(name: str) -> None:
    config = read_recipe(None, [f"data.root={name}", f"out={name.replace(ODD, 'x')}", f"init={name}"])
    assert (config.data.root, config.init) == (name, name)
    assert value_in("method", None, [f"data.root={name}"], "spark") == "spark"


@pytest.mark.parametrize("name", [ODD, "$", "$x_$", "$$", "a\\b", "\x07", "漢字", "_hidden"])
def test_any_name_can_be_drawn(name: str) -> None:
    from matplotlib.figure import Figure

    from spark.utils.plots import encode

    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=plain(name))
    axes.set_title(plain(name))
    axes.legend()
    assert encode(figure, "png")
    assert encode(figure, "svg")


def test_names_are_shown_in_a_line() -> None:
    assert printable("plain Ünï 漢") == "plain Ünï 漢"
    assert printable("a\nb\udcff\x07") == "a\\nb\\udcff\\x07"


@pytest.mark.parametrize(
    ("message", "told"),
    [("it fails: oh..", "it fails: oh."), ("Did you mean a?. No", "Did you mean a? No"), ("see ../.. or a...", None),
     ("'..' is a folder", None), ("a\n b.", "a b.")],
)  # fmt: skip
def test_sentences_end_once(message: str, told: str | None) -> None:
    assert in_a_line(message) == (told or message)


def test_one_thing_is_one() -> None:
    assert (counted(1, "thread"), counted(0, "thread"), counted(2000, "thread")) == (
        "1 thread", "0 threads", "2,000 threads")
    assert counted(2, "category", "categories") == "2 categories"
