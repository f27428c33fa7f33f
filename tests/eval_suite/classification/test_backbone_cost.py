"""A backbone's cost is that of the network as it is built."""

from __future__ import annotations

from eval_suite.classification.backbone_cost import backbone_cost


def test_options_make_another_network() -> None:
    usual = backbone_cost("convnext_atto", 64)
    small = backbone_cost("convnext_atto", 64, {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]})
    assert usual is not None
    assert small is not None
    assert small.parameters < usual.parameters / 10
    assert small.flops < usual.flops / 10
    assert backbone_cost("no_such_network") is None
