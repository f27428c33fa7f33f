"""Published numbers: what they say of themselves, and what they may stand beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from synthetic import IMAGENET, SCRATCH, SPARK, record

from eval_suite.published import UNVERIFIED, VERIFIED, as_text, measured_as_published, published, published_beside
from eval_suite.reporting.tables import flatten, summarize
from spark.runs.record import ResultRecord


def row_of(*records: ResultRecord) -> pd.Series:
    """The last row of a summary of some records."""
    return summary(records).iloc[-1]


def summary(records: Iterable[ResultRecord]) -> pd.DataFrame:
    return summarize(flatten({Path(str(index)): entry for index, entry in enumerate(records)}))


def test_every_number_has_a_source_and_says_whether_it_was_verified() -> None:
    assert len({number._replace(value="", table="", verified="") for number in published()}) == len(published())
    for number in published():
        assert all(number)
        assert float(number.value) > 0
        # Nobody has compared those of COCO with the paper.
        assert number.verified == (UNVERIFIED if number.task == "coco_mask_rcnn" else VERIFIED)


def test_sizes_of_the_gains_that_spark_reports() -> None:
    def top1(init: str) -> dict[str, float]:
        return {number.model: float(number.value) for number in published()
                if (number.init, number.metric) == (init, "top1") and "mmpretrain" not in number.source}

    before, after = top1("supervised"), top1("spark")
    assert len(before) == 8
    assert sorted(before) == sorted(after)
    assert all(0.45 < after[model] - before[model] < 1.15 for model in before)


@pytest.mark.parametrize(("init", "text"), [
    (SCRATCH, "79.8 [RSB (arXiv 2110.00476)]"),
    (SPARK, "80.6 [SparK README]; 80.10 [mmpretrain, reproduction]"),
    (dataclasses.replace(SPARK, kind="supervised"), ""),  # trained twice: nobody published that
])
def test_imagenet_itself_has_published_numbers_beside_it(init: object, text: str) -> None:
    run = record(80, init, model="resnet50.a1_in1k", origin="measured",  # type: ignore[arg-type]
                 protocol={"dataset": IMAGENET})
    rows = summary([run])
    own = rows[rows["n"] > 0].iloc[0]
    assert as_text(published_beside(own)) == text


@pytest.mark.parametrize("change", [
    {"origin": "smoke"}, {"protocol": {"dataset": {**IMAGENET, "classes": 10}}}, {"protocol": {}},
    {"model": "resnet10t"}, {"protocol": {"dataset": IMAGENET, "model": {"options": {"output_stride": 16}}}},
])
def test_other_data_has_none(change: dict[str, object]) -> None:
    fields = {"model": "resnet50", "origin": "measured", "protocol": {"dataset": IMAGENET}, **change}
    own = row_of(record(80, **fields))  # type: ignore[arg-type]
    assert not published_beside(own)


def test_another_input_size_is_another_benchmark() -> None:
    run = record(86, SPARK, model="convnext_large", origin="measured",
                 protocol={"dataset": IMAGENET, "data": {"input_size": 384}})
    assert measured_as_published(run) == "384"
    assert as_text(published_beside(row_of(run))) == "86.0 [SparK README]"


def test_coco_is_told_by_its_schedule_and_marked_as_unverified() -> None:
    run = dataclasses.replace(
        record(41, SPARK, model="resnet50", origin="measured"), task="coco_mask_rcnn", epochs=12.17,
        metrics={"bbox/AP": record(41).metrics["top1_last"]}, main_metric="bbox/AP",
        protocol={"categories": 80, "train_images": 118_287},
    )
    assert measured_as_published(run) == "1x"
    assert as_text(published_beside(row_of(run))) == "41.6 [SparK (arXiv 2301.03580), unverified]"
