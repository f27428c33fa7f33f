"""What policies of augmentation become."""

from __future__ import annotations

import pytest
from timm.data.auto_augment import AutoAugment, RandAugment
from torchvision.transforms import TrivialAugmentWide

from eval_suite.classification.augment import train_transform
from eval_suite.classification.config import DataConfig
from eval_suite.classification.finetune_config import AugmentConfig

POLICIES = {"rand": RandAugment, "autoaugment": AutoAugment, "trivial": TrivialAugmentWide}


@pytest.mark.parametrize("policy", [*POLICIES, "none"])
def test_a_policy_is_the_one_that_is_named(policy: str) -> None:
    transform = train_transform(DataConfig(), AugmentConfig(policy=policy))
    inner = getattr(transform.transforms[1], "transforms", [transform.transforms[1]])
    found = {kind for kind in POLICIES.values() for step in inner if isinstance(step, kind)}
    assert found == ({POLICIES[policy]} if policy in POLICIES else set())


def test_rand_augment_has_maes_strength() -> None:
    policy = train_transform(DataConfig(), AugmentConfig(policy="rand")).transforms[1].transforms[0]
    assert policy.num_layers == 2
    assert {(step.magnitude, step.magnitude_std) for step in policy.ops} == {(9, 0.5)}
