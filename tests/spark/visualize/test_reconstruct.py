"""`spark visualize reconstruct`: the pictures show what they say, and bad input is one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spark.cli import main
from spark.methods.load import load_pretrained
from spark.utils.files import write_text
from spark.visualize.contact_sheet import Row, contact_sheet
from spark.visualize.reconstruct import attempt, draw_mask

SMALL = [
    "model.name=resnet18", "model.drop_path=0", "data.input_size=[64,96]", "data.workers=0", "decoder.width=32",
    "train.batch=4", "train.epochs=1", "train.warmup_epochs=0", "device=cpu", "out=run", "data.root=pictures",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(drawn_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, and with the folder of a run on them that is over."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(drawn_pictures, folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_text(folder / "recipe.yaml", "{}")
        assert main(["pretrain", "recipe.yaml", *SMALL]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a finished run, in a current folder that has pictures: a copy that may be changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def visualize(*arguments: str) -> int:
    return main(["visualize", "reconstruct", *arguments, "--device", "cpu"])


def test_a_grid_and_a_page_for_every_seed_and_ratio(run: Path) -> None:
    arguments = ["run", "pictures/a/00.png", "pictures/b", "--seeds", "0", "5", "--mask-ratios", ".5", ".8"]
    assert visualize(*arguments, "--out", "shown") == 0
    page = (run.parent / "shown" / "reconstruct.html").read_text()
    rows = re.findall(r'data-ratio="([\d.]+)" data-seed="(\d)"', page)
    assert len(rows) == 7 * 4  # a file, and six in a folder
    assert set(rows) == {("0.5", "0"), ("0.5", "5"), ("0.8", "0"), ("0.8", "5")}
    assert page.count("<img") == 4 * len(rows)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # it can be sent as it is
    with Image.open(run.parent / "shown" / "reconstruct.png") as picture:
        assert picture.size[0] > 4 * 192
        assert picture.size[1] > 28 * 128


def test_a_checkpoint_file_will_do_and_the_trainings_ratio_is_the_default(run: Path) -> None:
    assert visualize("run/checkpoints/last.pt", "pictures/a/00.png") == 0
    assert 'data-ratio="0.6" data-seed="0"' in (run.parent / "runs/visualize/reconstruct.html").read_text()


def test_a_torn_checkpoint_gives_way_to_the_one_before(run: Path) -> None:
    last, previous = run / "checkpoints" / "last.pt", run / "checkpoints" / "previous.pt"
    whole = last.read_bytes()
    previous.write_bytes(whole)
    last.write_bytes(whole[:-1000])
    with pytest.warns(UserWarning, match=r"last\.pt' is truncated .*; trying the one before"):
        assert visualize("run", "pictures/a/00.png") == 0
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.pt", "previous.pt"]  # only looked at


def test_both_engines_load_the_trained_weights(run: Path) -> None:
    images = torch.randn(1, 3, 64, 96)
    mask = torch.tensor([[[[True, False, False], [False, True, False]]]])
    losses = []
    for engine in ("compact", "masked"):
        model, config, step = load_pretrained(run, {"engine": engine})
        assert (model.visible.engine, step, config.model.name) == (engine, 3, "resnet18")
        with torch.no_grad():
            losses.append(model(images, mask).loss.item())
    trained = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_columns_show_what_they_say(run: Path) -> None:
    model = load_pretrained(run).model
    mean, std = (0.5,) * 3, (0.25,) * 3
    images = torch.rand(1, 3, 64, 96) * 4 - 2
    original = np.asarray(((images[0] * 0.25 + 0.5) * 255).byte().permute(1, 2, 0))
    first, again = (attempt(model, images, 0.5, 3, mean, std) for _ in range(2))
    masked, drawn, pasted = map(np.asarray, first.panels)
    visible = draw_mask(model, (64, 96), 0.5, 3)[0, 0].repeat_interleave(32, 0).repeat_interleave(32, 1).bool().numpy()
    assert visible.mean() == 0.5
    assert np.abs(masked[visible].astype(int) - original[visible]).max() <= 1
    assert np.unique(masked[~visible]).tolist() == [127]
    assert np.array_equal(pasted[visible], masked[visible])
    assert np.array_equal(pasted[~visible], drawn[~visible])
    assert not np.array_equal(drawn[visible], pasted[visible])
    assert first.loss == again.loss
    assert model.mask_ratio == 0.6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere", "pictures"], ["'nowhere' does not exist"]),
        (["pictures", "pictures"], ["'pictures' is no folder of a pre-training", "checkpoints/last.pt"]),
        (["run/encoder.safetensors", "pictures"], ["holds the encoder alone"]),
        (["recipe.yaml", "pictures"], ["'recipe.yaml' is truncated or no checkpoint"]),
        (["plain.pt", "pictures"], ["'plain.pt' is no checkpoint of `spark pretrain`"]),
        (["run", "pictures/none.png"], ["image 'pictures/none.png' does not exist"]),
        (["run", "recipe.yaml"], ["image 'recipe.yaml' cannot be read: not an image"]),
        (["run", "pictures", "--mask-ratios", "0.99"], ["mask ratio 0.99 leaves 0 of 6 patches visible"]),
        (["run", "pictures", "--mask-ratios", "2"], ["--mask-ratios: 2.0 must be in (0, 1)"]),
        (["run", "pictures", "--seeds", "-1"], ["--seeds"]),
    ],
    ids=lambda value: value[0] if len(value) < 3 else None,
)
def test_bad_input_is_one_line(
    arguments: list[str], parts: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(1)}, "plain.pt")
    capsys.readouterr()
    assert visualize(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]
    assert not Path("runs").exists()


def test_arrays_of_a_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for number in range(4):
        np.save(f"pictures/{number}.npy", np.random.default_rng(number).integers(0, 255, (64, 96, 2), dtype=np.uint8))
    write_text(Path("recipe.yaml"), "{}")
    two = ["model.in_chans=2", "data.mean=[0.5,0.5]", "data.std=[0.2,0.2]"]
    assert main(["pretrain", "recipe.yaml", *SMALL, *two]) == 0
    assert visualize("run", "pictures") == 0
    assert Path("runs/visualize/reconstruct.png").is_file()


def test_small_pictures_are_enlarged_by_whole_numbers() -> None:
    tiny = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "RGB")
    caption = ["a name that is far too long for the gutter of the sheet.png"]
    sheet = contact_sheet(["a", "b"], [Row(caption, [tiny, tiny])])
    block = np.asarray(sheet)[34:162, 176:304]
    assert np.array_equal(block, np.asarray(tiny).repeat(32, 0).repeat(32, 1))
