"""`spark convert` reads and writes the files of other libraries, and runs no code from them."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from spark.cli import main
from spark.config import choices
from spark.errors import UserError
from spark.formats import detectron2, mmpretrain, official_convnext
from spark.formats.arrays import load_arrays
from spark.formats.convert import convert
from spark.formats.encoder import Encoder, EncoderInfo, save_encoder
from spark.formats.proofs import randomize_statistics
from spark.formats.reader import TIMM, read
from spark.formats.registry import FORMATS
from spark.methods.spark.model import SparK

INFO = EncoderInfo("resnet18", 3, (64, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "spark", 7, "abc", "test")


def random_state(model: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return randomize_statistics(timm.create_model(model, num_classes=0).state_dict())


def save(state: dict[str, Tensor], path: Path, model: str) -> None:
    """Write a state dict that says what it is, so that conversions are proven on small pictures at once."""
    torch.save({"model": state, "arch": model, "input_size": 64}, path)


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(tensor.equal(wanted[key]) for key, tensor in found.items())


@pytest.mark.parametrize(
    ("to", "file", "recognized"),
    [
        ("torchvision", "r18.pth", TIMM),  # the names are the same
        ("torchvision", "r18.safetensors", TIMM),
        ("detectron2", "r18.pkl", "detectron2"),
        ("mmpretrain", "r18.pth", "mmpretrain"),
        ("original-spark", "r18.pth", TIMM),
    ],
)
def test_a_resnet_goes_there_and_back(
    to: str, file: str, recognized: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state("resnet18")
    save(state, tmp_path / "source.pth", "resnet18")
    assert main(["convert", str(tmp_path / "source.pth"), str(tmp_path / file), "--to", to]) == 0
    printed = capsys.readouterr().out
    assert f"gives the same {len(state)} tensors" in printed
    assert ("agree within" in printed) == (to in ("torchvision", "detectron2"))
    assert ("outputs are not compared" in printed) == (to in ("mmpretrain", "original-spark"))
    found = read(tmp_path / file)
    assert (found.format, found.encoder.info.model) == (recognized, "resnet18")
    assert equal(found.encoder.state, state)


@pytest.mark.parametrize("to", ["official-convnext", "mmpretrain"])
def test_a_small_convnext_goes_there_and_back(to: str, tmp_path: Path) -> None:
    state = random_state("convnextv2_atto")  # in timm, of 1x1 convolutions
    save(state, tmp_path / "source.pth", "convnextv2_atto")
    assert main(["convert", str(tmp_path / "source.pth"), str(tmp_path / "v2.pth"), "--to", to]) == 0
    found = read(tmp_path / "v2.pth")
    assert (found.format, found.encoder.info.model) == (to, "convnextv2_atto")
    assert equal(found.encoder.state, state)


def test_a_whole_pretraining_model_goes_to_the_original_and_back(tmp_path: Path) -> None:
    state = SparK("resnet18", decoder_width=256).state_dict()
    config = {"model": {"name": "resnet18"}, "data": {"input_size": 64}}
    torch.save({"model": state, "config": config}, tmp_path / "last.pt")
    assert main(["convert", str(tmp_path / "last.pt"), str(tmp_path / "whole.pth"), "--to", "original-spark"]) == 0
    found = read(tmp_path / "whole.pth")
    assert (found.encoder.info.model, found.encoder.info.method) == ("resnet18", "spark")
    assert found.pretraining is not None
    assert equal(found.pretraining, dict(state))


@pytest.mark.parametrize(
    ("to", "file", "complaint"),
    [
        ("torchvision", "out.pkl", "ends in .pth, .pt, .safetensors"),
        ("official-convnext", "out.pth", "not explained by the official ConvNeXt naming"),
        ("detectron2", "out.pth", "write to"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    to: str, file: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(random_state("resnet18"), tmp_path / "source.pth", "resnet18")
    assert main(["convert", str(tmp_path / "source.pth"), str(tmp_path / file), "--to", to]) != 0
    assert complaint in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_the_command_line_knows_every_format() -> None:
    """It lists them without importing them."""
    assert ("timm", *FORMATS) == choices.FORMATS


@pytest.mark.parametrize("to", ["mmpretrain", "official-convnext", "original-spark"])
@pytest.mark.parametrize(("model", "options"), [
    ("resnet18", {"act_layer": "silu"}), ("resnetblur18", {}), ("convnext_zepto_rms", {}),
])
def test_variants_with_the_names_of_another_network_are_refused(
    to: str, model: str, options: dict[str, str], tmp_path: Path
) -> None:
    """No model is at hand to compare outputs with, and the names alone would fit."""
    info = EncoderInfo(model, 3, (64, 64), (0.5,) * 3, (0.2,) * 3, "spark", 1, None, "test", options)
    save_encoder(tmp_path, Encoder(timm.create_model(model, num_classes=0, **options).state_dict(), info))
    with pytest.raises(UserError, match=rf"is for plain ResNets and ConvNeXts; '{model}'"):
        convert(tmp_path, tmp_path / "out.pth", to)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(("change", "complaint"), [
    ({"model": "resnet18x"}, "unknown model 'resnet18x'"),
    ({"model": "resnet34"}, "is not a resnet34"),
    ({"model": None}, "model should be str, and is null"),
    ({"in_chans": 1}, "1 of another shape"),
    ({"options": None}, "options should be dict"),
    ({"options": {"color": 3}}, "cannot build 'resnet18'.*color"),
    ({"input_size": [64]}, "input_size should have 2 entries"),
    ({"input_size": ["a", "b"]}, "input_size should be int"),
    ({"input_size": [0, 64]}, r"input_size=.* must be at least 1"),
    ({"mean": ["dark"]}, "mean should be float"),
    ({"std": [0.0, 1.0, 1.0]}, r"std=.* must be positive"),
])
def test_an_export_that_somebody_edited_is_one_line(
    change: dict[str, object], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(tmp_path, Encoder(random_state("resnet18"), INFO))
    content = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps(content | change))
    assert main(["convert", str(tmp_path), str(tmp_path / "out.pth"), "--to", "torchvision"]) == 2
    said = capsys.readouterr().err
    assert re.search(complaint, said)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("content", "complaint"), [
    ({"input_size": "large"}, "input_size='large', which is no size"),
    ({"state_dict": {0: torch.zeros(1)}}, "holds no state dict of a known kind"),
    ({"state_dict": {"conv1.weight": torch.zeros(2, 2).to_sparse()}}, "holds no state dict of a known kind"),
    ({"config": {"model": {"name": "resnet18", "options": {"color": 3}}}}, "cannot build 'resnet18'"),
])
def test_odd_checkpoints_are_one_line(content: dict[str, object], complaint: str, tmp_path: Path) -> None:
    torch.save({"state_dict": random_state("resnet18"), "arch": "resnet18"} | content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / "x.pth")


def test_timms_way_to_tell_a_size_is_understood(tmp_path: Path) -> None:
    content = {"state_dict": random_state("resnet18"), "arch": "resnet18", "input_size": (3, 96, 128)}
    torch.save(content, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth").encoder.info.input_size == (96, 128)


def test_what_an_export_does_not_tell_may_be_told_and_nothing_else(tmp_path: Path) -> None:
    save_encoder(tmp_path, Encoder(random_state("resnet18"), dataclasses.replace(INFO, method="imported")))
    assert read(tmp_path, "resnet18", "supervised").encoder.info.method == "supervised"
    with pytest.raises(UserError, match="is a resnet18, and not a resnet34"):
        read(tmp_path, "resnet34")
    save_encoder(tmp_path, Encoder(random_state("resnet18"), INFO))
    with pytest.raises(UserError, match="how it was trained: spark, and not supervised"):
        read(tmp_path, method="supervised")


def test_bfloat16_becomes_float32_in_a_pickle(tmp_path: Path) -> None:
    state = {key: tensor.bfloat16() if tensor.is_floating_point() else tensor
             for key, tensor in random_state("resnet18").items()}
    detectron2.save(tmp_path / "x.pkl", detectron2.from_timm(state).state, INFO)
    assert equal(read(tmp_path / "x.pkl").encoder.state, {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()})


# Detectors


def in_detectron2(case: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a detector's state as Detectron2 names it, the heads abbreviated."""
    own = {"pixel_mean": torch.zeros(3, 1, 1), "proposal_generator.rpn_head.conv.weight": torch.zeros(1)}
    native = detectron2.from_timm(state).state
    if case == "FPN":
        fpn = {"backbone.fpn_lateral2.weight": torch.zeros(1), "backbone.fpn_output5.norm.bias": torch.zeros(1)}
        return own | fpn | {f"backbone.bottom_up.{key}": tensor for key, tensor in native.items()}
    if case == "C4":
        places = {key: f"roi_heads.{key}" if key.startswith("res5") else f"backbone.{key}" for key in native}
        heads = {"roi_heads.res5.norm.weight": torch.zeros(1), "roi_heads.mask_head.predictor.bias": torch.zeros(1)}
        return own | heads | {places[key]: tensor for key, tensor in native.items()}
    norms = {"backbone.bottom_up.out_norms.res2.weight": torch.zeros(1)}
    return own | norms | {f"backbone.bottom_up.net.{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize("case", ["FPN", "C4", "timm backbone"])
def test_the_backbone_is_taken_out_of_a_detectron2_checkpoint(case: str, tmp_path: Path) -> None:
    state = random_state("resnet18")
    model = in_detectron2(case, state)
    torch.save({"model": model, "optimizer": {"state": {}}, "iteration": 9}, tmp_path / "model_final.pth")
    found = read(tmp_path / "model_final.pth")
    assert equal(found.encoder.state, state)
    assert found.conversion.mapped.keys() | found.conversion.dropped.keys() == model.keys()
    assert found.conversion.dropped["pixel_mean"] == "normalisation of the images"


def test_a_detectors_own_normalisation_is_taken_and_bgr_is_refused(tmp_path: Path) -> None:
    model = in_detectron2("FPN", random_state("resnet18")) | {"anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    rgb, std = torch.tensor([120.0, 115.0, 100.0]), torch.tensor([60.0, 61.0, 62.0])
    torch.save({"model": model | {"pixel_mean": rgb.view(3, 1, 1), "pixel_std": std.view(3, 1, 1)}}, tmp_path / "x.pth")
    info = read(tmp_path / "x.pth").encoder.info
    assert info.mean == pytest.approx([value / 255 for value in rgb.tolist()])
    assert info.std == pytest.approx([value / 255 for value in std.tolist()])
    torch.save({"model": model | {"pixel_mean": rgb.flip(0), "pixel_std": torch.ones(3)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"images are BGR \(pixel_mean \[100\.0, 115\.0, 120\.0\]"):
        read(tmp_path / "x.pth")


def test_a_timm_backbone_without_the_layers_behind_its_maps_is_read(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=0)
    whole = network.state_dict()
    network.prune_intermediate_layers([1, 2, 3, 4], prune_norm=True, prune_head=True)
    kept = network.state_dict()
    assert "conv_head.weight" in whole.keys() - kept.keys()
    torch.save({"model": {f"backbone.bottom_up.net.{key}": kept[key] for key in kept}}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth", model="test_efficientnet")
    assert found.encoder.state.keys() == whole.keys()
    assert all(found.encoder.state[key].equal(kept[key]) for key in kept)
    assert "behind the last feature map" in found.conversion.missing["conv_head.weight"]


def test_an_unknown_part_of_a_detector_is_an_error(tmp_path: Path) -> None:
    model = in_detectron2("FPN", random_state("resnet18")) | {"surprise.weight": torch.zeros(1)}
    torch.save({"model": model}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 keys are not explained by the Detectron2.*surprise\.weight"):
        read(tmp_path / "x.pth")


def test_the_backbone_is_taken_out_of_mmdets_resnet(tmp_path: Path) -> None:
    state = random_state("resnet18")
    model = mmpretrain.from_timm(state).state | {"neck.lateral_convs.0.conv.weight": torch.zeros(1)}
    torch.save({"meta": {"epoch": 3}, "state_dict": model}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert equal(found.encoder.state, state)
    assert set(found.conversion.dropped) == {"neck.lateral_convs.0.conv.weight"}


@pytest.mark.parametrize("format", [mmpretrain, official_convnext])
def test_the_norms_of_a_convnext_detectors_levels_are_not_the_classifiers(format: Any, tmp_path: Path) -> None:
    state = random_state("convnextv2_atto")
    body = format.from_timm({key: tensor for key, tensor in state.items() if not key.startswith("head.")}).state
    inside = {f"backbone.{key.removeprefix('backbone.')}": tensor for key, tensor in body.items()}
    norms = {f"backbone.norm{level}.weight": torch.zeros(40 * 2**level) for level in range(4)}
    torch.save({"state_dict": inside | norms | {"roi_head.x": torch.zeros(1)}}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert set(found.conversion.dropped) == {*norms, "roi_head.x"}
    assert set(found.conversion.missing) == {"head.norm.weight", "head.norm.bias"}


# Pickles of arrays


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_read_from_any_pickle(protocol: int, tmp_path: Path) -> None:
    content = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array(3), "c": np.float32(1),
        "swapped": np.arange(3, dtype=">f4"), "__author__": "someone",
    }  # fmt: skip
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_arrays(tmp_path / "x.pkl")
    assert found["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (found["b"].item(), found["c"].item(), found["swapped"].tolist()) == (3, 1, [0, 1, 2])
    assert found["__author__"] == "someone"


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    written = pickle.dumps({"a": np.ones(2)}, 2)
    assert b"numpy._core" in written or b"numpy.core" in written
    (tmp_path / "x.pkl").write_bytes(written.replace(b"numpy._core", b"numpy.core"))
    assert load_arrays(tmp_path / "x.pkl")["a"].tolist() == [1, 1]


class Harmful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_of_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"a": Harmful(tmp_path / "made")}}))
    with pytest.raises(UserError, match=r"x\.pkl' holds a \w+\.mkdir, not arrays alone"):
        read(tmp_path / "x.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damage", ["truncated", "objects", "text"])
def test_a_damaged_pickle_is_refused_in_a_line(damage: str, tmp_path: Path) -> None:
    whole = pickle.dumps({"model": {"a": np.ones(100)}})
    content = {"truncated": whole[:-50], "text": b"hello", "objects": pickle.dumps(np.array([1, "a"], object))}[damage]
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pkl' is truncated or no pickle of arrays"):
        read(tmp_path / "x.pkl")


class Calls:
    """Pickled as a call, and then a state."""

    def __init__(self, function: object, arguments: tuple, state: object = None) -> None:
        self.way = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.way


RECONSTRUCT = np.zeros(1).__reduce__()[0]
FLOATS = np.dtype("f4")
HOSTILE = {
    "objects": Calls(np.ndarray, ((1,), np.dtype("O"), b"AAAAAAAA")),  # a call of ndarray itself
    "plain": Calls(np.ndarray, ((1,), FLOATS, b"AAAA")),
    "pointers": Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"A" * 8)),
    "huge": Calls(RECONSTRUCT, (np.ndarray, (10**12,), b"b"), (1, (10**12,), FLOATS, False, b"A" * 8)),
    "negative": Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1, -2), FLOATS, False, b"A" * 8)),
    "records": Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype([("a", "O")]), False, b"A" * 8)),
    "of strings": Calls(np.dtype, ("f4, O",)),
    "subclass": Calls(RECONSTRUCT, (dict, (0,), b"b")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_are_plain_and_filled_by_their_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"a": HOSTILE[name]}}))
    with pytest.raises(UserError, match=r"x\.pkl' (is truncated or no pickle of arrays|holds a \S+, not arrays alone)"):
        read(tmp_path / "x.pkl")


def test_pickles_that_grow_are_refused_at_once(tmp_path: Path) -> None:
    block, shared = bytes(2**20), {}
    blocks = {str(index): Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (2**18,), FLOATS, False, block))
              for index in range(500)}
    nested: dict[str, object] = shared
    for _ in range(200):
        nested = {"a": nested, "b": nested}
    (tmp_path / "blocks.pkl").write_bytes(pickle.dumps({"model": blocks}))
    (tmp_path / "room.pkl").write_bytes(b"\x80\x04}r\xf0\xff\xff\xff.")
    (tmp_path / "long.pkl").write_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.")
    (tmp_path / "nested.pkl").write_bytes(pickle.dumps(nested))
    for name in ("blocks", "room", "long", "nested"):
        with pytest.raises(UserError):
            read(tmp_path / f"{name}.pkl")


def test_a_model_zoo_file_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {key: tensor for key, tensor in random_state("resnet18").items() if "num_batches" not in key}
    arrays = {key: tensor.numpy() for key, tensor in detectron2.from_timm(state).state.items()}
    content = {"model": arrays | {"stem.fc.bias": np.zeros(9)}, "__author__": "torchvision"}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    assert main(["convert", str(tmp_path / "R-18.pkl"), str(tmp_path / "out"), "--to", "timm"]) == 0
    printed = capsys.readouterr().out
    assert "STRIDE_IN_1X1" in printed
    assert re.search(r"dropped 1 \(classifier.*stem\.fc\.bias", printed)
    assert re.search(r"missing 20 \(a frozen norm's count", printed)
    assert "outputs of timm's and detectron2's resnet18 agree" in printed


def test_caffe2s_names_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"conv1_w": np.ones(3), "res2_0_branch2a_w": np.ones(3)}))
    with pytest.raises(UserError, match=r"Caffe2.*stride"):
        read(tmp_path / "R-50.pkl")
