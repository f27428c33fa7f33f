"""Checkpoints of every known format are read, explained key by key, and written for Detectron2."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
from pathlib import Path

import pytest
import timm
import torch
import yaml
from paths import GOLDEN
from torch import Tensor

from spark.errors import UserError
from spark.formats import convert as conversion
from spark.formats import detectron2, original_spark
from spark.formats.encoder import Encoder, EncoderInfo, load_encoder, save_encoder
from spark.formats.naming import Conversion, rename
from spark.formats.proofs import randomize_statistics
from spark.formats.reader import read
from spark.formats.weights import read_weights
from spark.methods.spark.model import SparK

D2_KEYS = json.loads((GOLDEN / "detectron2_resnet_keys.json").read_text())


def random_state(model: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return randomize_statistics(timm.create_model(model, num_classes=0).state_dict())


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's ConvNeXt to the official naming, independently of the project's converter."""
    renamed = {}
    for key, tensor in state.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", key)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv")
        name = name.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        renamed[name.replace("head.norm", "norm").replace("head.fc", "head")] = tensor
    return renamed


def golden_state(name: str) -> dict[str, Tensor]:
    """Return a state in the naming and with the shapes of the original implementation."""
    generator = torch.Generator().manual_seed(0)
    entries = json.loads((GOLDEN / name).read_text())["state"]
    return {
        entry["name"]: torch.randn(entry["shape"], generator=generator) if entry["shape"] else torch.tensor(0)
        for entry in entries
    }


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(tensor.equal(wanted[key]) for key, tensor in found.items())


# Reading


@pytest.mark.parametrize(
    ("case", "arch", "stem"),
    [
        ("resnet18_128.json", "resnet18", {"conv1.weight": "conv1.weight"}),
        ("convnext_tiny_96.json", "convnext_tiny", {"stem.0.weight": "downsample_layers.0.0.weight"}),
    ],
)
def test_the_originals_whole_checkpoint_is_read(case: str, arch: str, stem: dict[str, str], tmp_path: Path) -> None:
    state = golden_state(case)
    content = {
        "args": "Args(...)", "input_size": 192, "arch": arch, "epoch": 99, "module": state,
        "optimizer": {"state": {}, "param_groups": []}, "is_pretrain": True,
    }  # fmt: skip
    torch.save(content, tmp_path / "still_pretraining.pth")
    found = read(tmp_path / "still_pretraining.pth")
    assert found.encoder.info.model == arch
    assert (found.encoder.info.epochs, found.encoder.info.input_size) == (100, (192, 192))
    for ours, theirs in stem.items():
        assert found.encoder.state[ours].equal(state[f"sparse_encoder.sp_cnn.{theirs}"])
    explained = found.conversion.mapped.keys() | found.conversion.dropped.keys()
    assert explained == state.keys()
    assert "dense_decoder.proj.weight" in found.conversion.dropped
    _, unexpected = timm.create_model(arch, num_classes=0).load_state_dict(found.encoder.state, strict=False)
    assert not unexpected


def test_the_originals_whole_model_loads_into_ours() -> None:
    model = SparK("resnet18", decoder_width=256)
    converted = original_spark.to_ours(golden_state("resnet18_128.json")).state
    model.load_state_dict(converted)


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_official_convnext_weights_are_read(nested: str | None, tmp_path: Path) -> None:
    state = random_state("convnext_tiny")
    content = official(state) | {"head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(1000)}
    torch.save({nested: content} if nested else content, tmp_path / "convnext.pth")
    found = read(tmp_path / "convnext.pth")
    assert found.encoder.info.model == "convnext_tiny"
    assert equal(found.encoder.state, state)
    assert set(found.conversion.dropped) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_torchvision_resnet_is_read(prefix: str, tmp_path: Path) -> None:
    state = random_state("resnet18")
    content = state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({prefix + key: tensor for key, tensor in content.items()}, tmp_path / "r18.pth")
    found = read(tmp_path / "r18.pth")
    assert found.encoder.info.model == "resnet18"
    assert equal(found.encoder.state, state)


def info(model: str) -> EncoderInfo:
    return EncoderInfo(model, 3, (96, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "spark", 7, "abc", "test")


def test_an_export_comes_back_as_it_was(tmp_path: Path) -> None:
    encoder = Encoder(random_state("resnet18"), info("resnet18"))
    weights = save_encoder(tmp_path, encoder)
    for path in (tmp_path, weights):
        for found in (load_encoder(path), read(path).encoder):
            assert found.info == encoder.info
            assert equal(found.state, encoder.state)


def test_an_export_may_be_renamed(tmp_path: Path) -> None:
    """What is written beside the weights is not in them: the means of channels, say."""
    save_encoder(tmp_path, Encoder(random_state("resnet18"), info("resnet18")))
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"mine{file.suffix}")
    assert read(tmp_path / "mine.safetensors").encoder.info == info("resnet18")


def test_tensors_that_share_their_numbers_are_exported(tmp_path: Path) -> None:
    shared = torch.randn(4)
    save_encoder(tmp_path, Encoder({"a": shared, "b": shared, "c": shared[1:]}, info("resnet18")))
    assert equal(load_encoder(tmp_path).state, {"a": shared, "b": shared, "c": shared[1:]})


@pytest.mark.parametrize("model", ["test_efficientnet", "test_convnext", "mobilenetv3_small_050", "densenet121"])
def test_a_timm_classifier_is_read_whatever_its_last_layer_is_called(model: str, tmp_path: Path) -> None:
    state = timm.create_model(model).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    found = read(tmp_path / "weights.pth", model=model)
    assert equal(found.encoder.state, {key: state[key] for key in timm.create_model(model, num_classes=0).state_dict()})
    assert len(found.conversion.dropped) == 2


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_a_truncated_or_missing_part_of_an_export_is_named(name: str, tmp_path: Path) -> None:
    save_encoder(tmp_path, Encoder({"conv1.weight": torch.zeros(64, 3, 7, 7)}, info("resnet18")))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=re.escape(name)):
        read(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)}' does not exist"):
        read(tmp_path)


def test_a_flipped_bit_of_an_export_is_noticed(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "half": torch.zeros(3, dtype=torch.bfloat16),
             "count": torch.tensor(3)}
    weights = save_encoder(tmp_path, Encoder(state, info("resnet18")))
    whole = weights.read_bytes()
    for place in (len(whole) - 1, whole.index(b"conv1") + 4, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        weights.write_bytes(damaged)
        for path in (tmp_path, weights):
            with pytest.raises(UserError, match=r"encoder\.safetensors' are not those that were exported"):
                load_encoder(path)
            with pytest.raises(UserError, match="not those that were exported"):
                read(path)
            with pytest.raises(UserError, match="not those that were exported"):
                read_weights(str(path), "resnet18")


def test_an_export_of_an_older_version_has_no_checksum(tmp_path: Path) -> None:
    weights = save_encoder(tmp_path, Encoder(random_state("resnet18"), info("resnet18")))
    told = json.loads((tmp_path / "encoder.json").read_text())
    del told["tensors_sha256"]
    (tmp_path / "encoder.json").write_text(json.dumps(told))
    assert load_encoder(weights).info == info("resnet18")


def test_an_export_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_encoder(tmp_path, Encoder({"a": torch.zeros(3)}, info("resnet18")))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save(random_state("resnet18"), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"r18\.pth' is truncated"):
        read(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"surprise.weight": torch.zeros(1)}, r"not a resnet18: 1 unexpected \(surprise\.weight\)"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"1 of another shape \(conv1\.weight\)"),
        ({"conv1.weight": None}, r"1 missing \(conv1\.weight\)"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    change: dict[str, Tensor | None], complaint: str, tmp_path: Path
) -> None:
    changed = {**random_state("resnet18"), **change}
    torch.save({key: tensor for key, tensor in changed.items() if tensor is not None}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / "x.pth", "resnet18")


def test_an_unknown_architecture_asks_for_its_name(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no known model has these tensors.*--model"):
        read(tmp_path / "x.pth")


def test_unexplained_keys_of_the_original_are_refused(tmp_path: Path) -> None:
    state = golden_state("resnet18_128.json") | {"dense_decoder.extra.weight": torch.zeros(1)}
    torch.save({"module": state, "arch": "resnet18"}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 keys are not explained .*: dense_decoder\.extra\.weight"):
        read(tmp_path / "x.pth")


def test_two_keys_never_become_one() -> None:
    with pytest.raises(UserError, match="would both become 'c'"):
        rename({"a": torch.zeros(1), "b": torch.zeros(1)}, [("[ab]", "c")])


# Detectron2


@pytest.mark.parametrize(("model", "tensors"), [("resnet50", 318), ("resnet101", 624)])
def test_detectron2_gets_exactly_its_tensors(model: str, tensors: int) -> None:
    converted = detectron2.from_timm(random_state(model)).state
    assert len(converted) == tensors
    assert {name: list(tensor.shape) for name, tensor in converted.items()} == D2_KEYS[model]


@pytest.mark.parametrize("model", ["resnet50", "resnet101"])
def test_converted_weights_are_proven_equal(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_state(model), tmp_path / "source.pth")
    conversion.convert(tmp_path / "source.pth", tmp_path / "d2" / "r.pkl", "detectron2")
    printed = capsys.readouterr().out
    agreement = re.search(r"proof: .* agree within (\S+) \(relative\)", printed)
    assert agreement
    assert float(agreement[1]) <= 1e-4
    assert f"mapped {len(D2_KEYS[model])} tensors" in printed
    assert sorted(path.name for path in (tmp_path / "d2").iterdir()) == ["r.pkl", "r.yaml"]


@pytest.mark.parametrize("tensor", ["stem.conv1.norm.running_mean", "res4.5.conv2.weight"])
def test_a_perturbed_tensor_fails_the_proof_and_nothing_is_written(
    tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(random_state("resnet50"), tmp_path / "source.pth")
    right = detectron2.from_timm

    def perturbed(state: dict[str, Tensor]) -> Conversion:
        converted = right(state)
        changed = converted.state[tensor] * 1.01 + 0.01
        return Conversion(converted.state | {tensor: changed}, converted.mapped, converted.dropped)

    monkeypatch.setattr(detectron2, "from_timm", perturbed)
    with pytest.raises(UserError, match="proof failed"):
        conversion.convert(tmp_path / "source.pth", tmp_path / "r.pkl", "detectron2")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


@pytest.mark.parametrize("recipe", ["", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
                                    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"])
def test_detectron2s_own_checkpointer_loads_the_file(recipe: str, tmp_path: Path) -> None:
    """Into the bare network, and into Detectron2's own detectors around it."""
    from detectron2 import model_zoo
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from d2_projects.modeling.equivalence import detectron2_resnet

    state = detectron2.from_timm(random_state("resnet50")).state
    detectron2.save(tmp_path / "r.pkl", state, info("resnet50"))
    if recipe:
        cfg = model_zoo.get_config(recipe)
        cfg.merge_from_file(str(tmp_path / "r.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        network = build_model(cfg)
    else:
        network = detectron2_resnet("resnet50")
    DetectionCheckpointer(network).load(str(tmp_path / "r.pkl"))
    held = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked") and recipe:  # frozen norms do not count
            continue
        (own,) = (key for key in held if f".{key}".endswith(f".{name}"))
        assert held[own].equal(tensor), name


def test_the_pickle_holds_plain_arrays_only(tmp_path: Path) -> None:
    detectron2.save(tmp_path / "r.pkl", detectron2.from_timm(random_state("resnet18")).state, info("resnet18"))
    content = pickle.loads((tmp_path / "r.pkl").read_bytes())
    assert {type(array).__module__ for array in content["model"].values()} == {"numpy"}
    assert content["matching_heuristics"] is True


@pytest.mark.parametrize(("model", "depth"), [("resnet18", 18), ("resnet50", 50), ("resnet101.a1_in1k", 101)])
def test_the_config_values_match_the_weights(model: str, depth: int, tmp_path: Path) -> None:
    detectron2.save(tmp_path / "r.pkl", {}, info(model))
    values = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert values["INPUT"]["FORMAT"] == "RGB"
    assert values["MODEL"]["WEIGHTS"] == str(tmp_path / "r.pkl")
    assert values["MODEL"]["PIXEL_MEAN"] == [127.5, 102.0, 76.5]
    assert values["MODEL"]["PIXEL_STD"] == [51.0, 51.0, 25.5]
    assert values["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    assert values["MODEL"]["RESNETS"]["DEPTH"] == depth
    assert values["MODEL"]["RESNETS"].get("RES2_OUT_CHANNELS") == (64 if depth < 50 else None)


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        ("resnet18d", r"'conv1\.0\.weight', a deep stem"),
        ("seresnet18", r"'layer1\.0\.se\.fc1\.weight', an attention gate"),
        ("convnext_atto", r"'stem\.0\.weight', of another network"),
        ("resnet26", "holds resnet18, resnet34"),
    ],
)
def test_networks_that_detectron2_cannot_hold_are_sent_to_the_timm_backbone(
    model: str, obstacle: str, tmp_path: Path
) -> None:
    torch.save(random_state(model), tmp_path / "source.pth")
    with pytest.raises(UserError, match=f"{obstacle}.*timm_backbone.py"):
        conversion.convert(tmp_path / "source.pth", tmp_path / "r.pkl", "detectron2", model)
    assert not (tmp_path / "r.pkl").exists()


def test_converting_to_timm_writes_an_export(tmp_path: Path) -> None:
    state = random_state("resnet18")
    torch.save(state, tmp_path / "source.pth")
    conversion.convert(tmp_path / "source.pth", tmp_path / "out", "timm")
    assert equal(load_encoder(tmp_path / "out").state, state)
