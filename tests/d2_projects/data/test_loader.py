"""The images of a training follow from seed and iteration: resumed, in workers, in several processes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.samplers import TrainingSampler
from omegaconf import DictConfig
from paths import ROOT

from d2_projects.data.coco import check, registered
from d2_projects.data.loader import Draw, DrawSampler, FollowingBatches, build_train_loader, seeded

RECIPE = ROOT / "d2_projects" / "mask_rcnn" / "mask_rcnn_r18_demo.py"


def train_loader(names: tuple[str, str]) -> DictConfig:
    cfg = LazyConfig.load(str(RECIPE)).dataloader.train
    cfg.dataset.names, cfg.total_batch_size = names[0], 2
    cfg.mapper.augmentations[0].update(short_edge_length=[48, 64, 80], max_size=96)
    return cfg


def summary(batches: object, count: int) -> list[tuple[str, tuple[int, ...], float]]:
    """What is in some batches: which images, how large and whether flipped."""
    return [(record["file_name"][-6:], tuple(record["image"].shape), float(record["image"].double().mean()),
             float(record["instances"].gt_boxes.tensor.sum()))
            for batch in islice(iter(batches), count) for record in batch]


@pytest.mark.parametrize(("first", "workers", "accumulate"), [(3, 0, 1), (0, 2, 1), (3, 2, 1), (2, 0, 2)])
def test_a_loader_begins_anywhere(coco: Path, first: int, workers: int, accumulate: int) -> None:
    with registered(check(coco)) as names:
        cfg = train_loader(names)
        records = instantiate(cfg.dataset)
        whole = summary(build_train_loader(cfg, records, seed=5, first_iteration=0), 6)
        cfg.num_workers, cfg.total_batch_size = workers, 2 * accumulate
        later = summary(build_train_loader(cfg, records, 5, first, accumulate), 6 - first * accumulate)
        assert later == whole[2 * first * accumulate:]
        assert summary(build_train_loader(cfg, records, 6, first, accumulate), 2) != later[:4]
    assert len({size for _, size, *_ in whole}) > 1  # augmentation draws, and not the same for all


def test_batches_for_precise_statistics_follow_the_iteration(coco: Path) -> None:
    with registered(check(coco)) as names:
        cfg = train_loader(names)
        records = instantiate(cfg.dataset)
        whole = summary(build_train_loader(cfg, records, 5, 0), 8)
        iteration = 2
        built = []

        def build(first: int) -> Iterable[Any]:
            loader = build_train_loader(cfg, records, 5, first)
            built.append(weakref.ref(loader))
            return loader

        following = iter(FollowingBatches(build, lambda: iteration, 2))
        assert summary(following, 2) == whole[6:10]
        iteration = 4
        assert summary(following, 2) == whole[10:14]
        gc.collect()
        assert [reference() for reference in built] == [None, None]  # nor are their processes kept


def test_batches_do_not_mix_wide_and_high() -> None:
    wide = np.array([1, 0, 0, 1, 1, 0, 1], dtype=np.uint8)
    sampler = DrawSampler(TrainingSampler(7, seed=1), batch=3, first_batch=0, wide=wide)
    draws = list(islice(sampler, 30))
    batches = [draws[start:start + 3] for start in range(0, 30, 3)]
    assert all(len({wide[draw.image] for draw in batch}) == 1 for batch in batches)
    assert len({wide[batch[0].image] for batch in batches}) == 2
    assert len({draw.position for draw in draws}) == 30
    resumed = DrawSampler(TrainingSampler(7, seed=1), batch=3, first_batch=4, wide=wide)
    assert list(islice(resumed, 6)) == draws[12:18]


def test_processes_share_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(rank: int, size: int) -> list[Draw]:
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: size)
        return list(islice(DrawSampler(TrainingSampler(5, seed=1), 4 // size, first_batch=1), 8 // size))

    assert sorted(share(0, 2) + share(1, 2), key=lambda draw: draw.position) == share(0, 1)


def test_seeding_in_between_leaves_no_trace() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    with seeded(7):
        inside = (torch.rand(1).item(), np.random.rand())
    after = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    assert after == (torch.rand(1).item(), np.random.rand())
    with seeded(7):
        assert inside == (torch.rand(1).item(), np.random.rand())
