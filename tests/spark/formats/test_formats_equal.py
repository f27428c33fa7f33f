"""Converted weights give equal outputs in the other library's model, and come back as they were."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchvision as torchvision_library
from paths import GOLDEN
from reference_convnext import MMPRETRAIN, OFFICIAL, ConvNeXt
from torch import Tensor, nn

from spark.errors import UserError
from spark.formats import detectron2, mmpretrain, official_convnext, original_spark, torchvision
from spark.formats.convert import output_difference
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Rule, Table
from spark.formats.proofs import difference, random_images, randomize_statistics
from spark.formats.registry import FORMATS, Format

TOLERANCE = 1e-5
LARGE = pytest.mark.slow
RESNETS = [
    "resnet50", "resnext50_32x4d", *(pytest.param(name, marks=LARGE) for name in (
        "resnet101", "resnet152", "wide_resnet50_2"
    )),
]  # fmt: skip
CONVNEXTS = ["convnext_tiny", pytest.param("convnext_base", marks=LARGE)]


def randomized(model: str, num_classes: int = 0) -> nn.Module:
    """Return timm's model in evaluation mode, its norms' statistics, scales and shifts random."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=num_classes)
    network.load_state_dict(randomize_statistics(network.state_dict()))
    return network.eval()


def info(model: str) -> EncoderInfo:
    return EncoderInfo(model, 3, (64, 64), (0.5,) * 3, (0.2,) * 3, "imported", None, None, "test")


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        tensor.shape == wanted[key].shape and tensor.equal(wanted[key]) for key, tensor in found.items()
    )


# With a library's own model


@pytest.mark.parametrize("model", [*RESNETS, *CONVNEXTS])
def test_torchvisions_model_gives_timms_logits_and_the_other_way_round(model: str) -> None:
    network = randomized(model, num_classes=1000)
    twin = torchvision_library.models.get_model(model, weights=None).eval()
    back = torchvision.to_timm(twin.state_dict()).state
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items()
    }
    there = torchvision.from_timm(network.state_dict())
    twin.load_state_dict(there.state)
    assert difference(twin, network, random_images()).relative < TOLERANCE
    assert equal(torchvision.to_timm(there.state).state, dict(network.state_dict()))


@pytest.mark.parametrize("model", ["resnet18", *RESNETS])
def test_detectron2s_resnet_gives_timms_features(model: str) -> None:
    state = dict(randomized(model).state_dict())
    found = output_difference("detectron2", info(model), state)
    assert found is not None
    assert found.relative < TOLERANCE
    assert equal(detectron2.to_timm(detectron2.from_timm(state).state).state, state)


# With a network written for the test, of which the library cannot be installed


@pytest.mark.parametrize("model", [*CONVNEXTS, "convnextv2_atto"])
@pytest.mark.parametrize(("format", "names"), [(official_convnext, OFFICIAL), (mmpretrain, MMPRETRAIN)])
def test_a_convnext_with_the_other_names_gives_timms_features(model: str, format: Format, names: tuple) -> None:
    network = randomized(model)
    depths = [len(stage.blocks) for stage in network.stages]
    widths = [stage["num_chs"] for stage in network.feature_info]
    twin = ConvNeXt(depths, widths, names, version=2 if "v2" in model else 1).eval()
    there = format.from_timm(network.state_dict())
    (nn.ModuleDict({"backbone": twin}) if format is mmpretrain else twin).load_state_dict(there.state)
    assert difference(twin, network, random_images()).relative < TOLERANCE
    assert format.recognized(there.state)
    assert equal(format.to_timm(there.state).state, official_convnext.linear_layers(network.state_dict()))


def test_mmpretrains_resnet_is_torchvisions_behind_a_prefix() -> None:
    network = randomized("resnet18", num_classes=1000)
    there = mmpretrain.from_timm(network.state_dict()).state
    inside = {key.removeprefix("backbone."): tensor for key, tensor in there.items() if key.startswith("backbone.")}
    assert there.keys() - {f"backbone.{key}" for key in inside} == {"head.fc.weight", "head.fc.bias"}
    assert inside.keys() == torchvision_library.models.resnet18().state_dict().keys() - {"fc.weight", "fc.bias"}
    assert equal(mmpretrain.to_timm(there).state, dict(network.state_dict()))


@pytest.mark.parametrize(
    ("format", "model", "head"),
    [
        (official_convnext, "convnextv2_atto", {"head.weight", "head.bias"}),
        (mmpretrain, "convnextv2_atto", {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_a_classifier_goes_along(format: Format, model: str, head: set[str]) -> None:
    state = dict(timm.create_model(model, num_classes=2).state_dict())
    there = format.from_timm(state).state
    assert head <= there.keys()
    assert equal(format.to_timm(there).state, official_convnext.linear_layers(state))


@pytest.mark.parametrize("case", ["resnet18_128.json", "convnext_tiny_96.json"])
def test_the_originals_whole_model_comes_back_as_it_was(case: str) -> None:
    entries = json.loads((GOLDEN / case).read_text())["state"]
    state = {entry["name"]: torch.randn(entry["shape"]) for entry in entries}
    ours = original_spark.to_ours(state)
    assert equal(original_spark.from_ours(ours.state).state, state)


def test_the_originals_encoder_ends_at_the_last_feature_map() -> None:
    there = original_spark.from_timm(randomized("convnextv2_atto").state_dict())
    assert set(there.dropped) == {"head.norm.weight", "head.norm.bias"}
    assert official_convnext.recognized(there.state)


# Tables


def test_a_wrong_table_is_found_by_unequal_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [rule for rule in detectron2.TABLE.rules if rule.timm != "layer1.{block}.bn{conv}.{norm}"]
    swapped = [  # both norms have the same shapes, and the way back is exact
        Rule("res2.{block}.conv1.norm.{norm}", "layer1.{block}.bn2.{norm}"),
        Rule("res2.{block}.conv2.norm.{norm}", "layer1.{block}.bn1.{norm}"),
    ]
    monkeypatch.setattr(detectron2, "TABLE", Table(*kept, *swapped, example=detectron2.TABLE.example))
    found = output_difference("detectron2", info("resnet18"), dict(randomized("resnet18").state_dict()))
    assert found is not None
    assert found.relative > 1e-2


def test_a_table_that_does_not_lead_back_is_refused() -> None:
    with pytest.raises(ValueError, match="different fields"):
        Table(Rule("a.{block}", "b"), example="b")
    table = Table(Rule("a.{block}", "x.{block}"), Rule("b.{block}", "x.{block}"), example="x.0")
    with pytest.raises(UserError, match=r"'b\.0' would become 'x\.0', from which nothing leads back"):
        table.to_timm({"b.0": torch.zeros(1)})


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_of_another_kind_is_refused(name: str) -> None:
    if name == "original-spark":  # its encoders have the names of whatever network they are
        return
    with pytest.raises(UserError, match=r"no place for 'stem\.conv\.weight'|not explained by"):
        FORMATS[name].from_timm(timm.create_model("regnetx_002", num_classes=0).state_dict())
