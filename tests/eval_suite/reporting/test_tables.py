"""Tables of records: what may be averaged and compared, and what may not."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic import SCRATCH, SPARK, record

from eval_suite.reporting.table_text import readable, to_csv, to_latex, to_markdown
from eval_suite.reporting.tables import collect, flatten
from eval_suite.reporting.tables import summarize as summarize_flat
from eval_suite.study.cluster import Resources
from eval_suite.study.graph import Graph, Node
from eval_suite.task import Work
from spark.errors import UserError
from spark.runs.record import Initialization, Metric, ResultRecord

SUPERVISED = Initialization("supervised", "timm:resnet18.a1_in1k")


def summarize(records: list[ResultRecord]) -> pd.DataFrame:
    """A summary of records that lie nowhere."""
    return summarize_flat(flatten({Path(str(index)): entry for index, entry in enumerate(records)}))


def test_mean_std_and_gain_over_scratch() -> None:
    runs = [record(50, seed=0), record(54, seed=1), record(60, SPARK, seed=0), record(62, SPARK, seed=1)]
    scratch, spark = summarize(runs).to_dict("records")
    assert (scratch["mean"], scratch["n"]) == (52, 2)
    assert scratch["std"] == pytest.approx(8**0.5)
    assert pd.isna(scratch["gain"])
    assert (spark["mean"], spark["n"], spark["gain"]) == (61, 2, 9)
    assert spark["init"] == "spark, 30 epochs"
    assert spark["interval"] == ""
    assert spark["each"] == (10, 8)  # of two runs
    text = to_markdown(summarize(runs))
    assert "+9.00 (of +10.00 and +8.00)" in text
    assert "Of two runs, both gains are shown" in text
    spark = summarize([*runs, record(52, seed=2), record(61, SPARK, seed=2)]).to_dict("records")[1]
    assert spark["interval"] == "paired"
    assert spark["gain_low"] < 9 < spark["gain_high"]


def test_equal_results_of_seeds_are_explained_and_intervals_end_where_the_metric_does() -> None:
    data = {"dataset": {"val_images": 48}}
    values = {SCRATCH: (20, 20, 20), SPARK: (95, 80, 99)}
    table = summarize([record(value, init, seed=seed, protocol=data)
                       for init, of_seeds in values.items() for seed, value in enumerate(of_seeds)])
    spark = table.to_dict("records")[1]
    assert spark["gain_high"] == 80  # of 20 %, no more can be gained
    assert spark["interval"] == "paired, cut"
    text = to_markdown(table)
    assert "beyond what the metric can be" in text
    assert "± 0.00: the seeds' runs came to the same number" in text
    assert "over 48 images to evaluate on, accuracies come in steps of 2.1 %" in text


def test_random_features_of_other_statistics_are_other_rows() -> None:
    """Statistics that were taken anew because the weights needed it are in no protocol; an earlier run's were not."""
    old = record(50, protocol={"model": {"recalibrate": 0}})
    new = dataclasses.replace(old, seed=1, resolved={"model.recalibrate": "2048"})
    assert list(summarize([old, new])["init"]) == ["scratch", "scratch (recalibrated)"]
    asked = {"model": {"recalibrate": 2048}}
    runs = [record(50, seed=seed, protocol=asked) for seed in (0, 1)]
    runs[0] = dataclasses.replace(runs[0], resolved={"model.recalibrate": "2048"})  # older records do not tell
    assert list(summarize(runs)["n"]) == [2]


def test_without_scratch_the_gain_is_over_supervised_and_says_so() -> None:
    table = summarize([record(50, SUPERVISED), record(60, SPARK)])
    supervised, spark = table.to_dict("records")
    assert (supervised["init"], spark["gain"], spark["baseline"]) == ("supervised", 10, "supervised")
    assert "gain over supervised" in readable(table)
    assert readable(table)["gain over supervised"].tolist() == ["", "+10.00"]
    with_scratch = summarize([record(50, SUPERVISED), record(60, SPARK), record(40)])
    assert readable(with_scratch)["gain over scratch"].tolist() == ["", "+10.00", "+20.00"]


def test_supervised_trainings_are_told_apart_and_none_is_the_baseline() -> None:
    other = dataclasses.replace(SUPERVISED, checkpoint="timm:resnet18.fb_ssl_yfcc100m_ft_in1k")
    table = summarize([record(50, SUPERVISED), record(58, other), record(60, SPARK)])
    rows = table[table["n"] > 0]
    assert rows["mean"].tolist() == [50, 58, 60]
    assert rows["init"].tolist() == [
        f"supervised ({SUPERVISED.checkpoint})", f"supervised ({other.checkpoint})", "spark, 30 epochs",
    ]
    assert rows["gain"].isna().all()
    assert summarize([record(50, SUPERVISED), record(58, other), record(60, SPARK), record(40)])["gain"].max() == 20


@pytest.mark.parametrize("change", [{"epochs": 9}, {"origin": "measured"}, {"model": "resnet34"}])
def test_no_gain_across_protocols_origins_or_models(change: dict[str, object]) -> None:
    table = summarize([record(50), record(60, SPARK, **change)])  # type: ignore[arg-type]
    assert len(table[table["n"] > 0]) == 2
    assert table["gain"].isna().all()
    assert "no scratch run" in to_markdown(table)
    assert len(table[table["n"] == 0]) >= 1  # what each side lacks is shown


def test_what_a_protocol_lacks_is_a_row_without_numbers() -> None:
    runs = [record(50), record(60, SPARK), record(61, SPARK, model="resnet34"), record(70, epochs=9)]
    table = summarize(runs)
    (missing,) = table[table["n"] == 0].to_dict("records")
    assert (missing["model"], missing["init"], missing["protocol"]) == ("resnet34", "scratch", runs[0].protocol_id)
    assert readable(table)["mean ± std"].tolist().count("–") == 1


def test_pre_trainings_that_differ_by_seed_alone_are_repetitions() -> None:
    inits = [dataclasses.replace(SPARK, checkpoint_sha256=letter * 64, recipe_hash="same") for letter in "ab"]
    table = summarize([record(60 + seed, init, seed=seed) for seed, init in enumerate(inits)])
    (row,) = table[table["n"] > 0].to_dict("records")
    assert (row["n"], row["mean"]) == (2, 60.5)


def test_different_checkpoints_are_different_rows_with_different_names() -> None:
    other = dataclasses.replace(SPARK, checkpoint_sha256="b" * 64)
    table = summarize([record(50), record(60, SPARK), record(70, other)])
    assert list(table["init"]) == ["scratch", "spark, 30 epochs (aaaaaaaa)", "spark, 30 epochs (bbbbbbbb)"]
    assert list(table["gain"])[1:] == [10, 20]
    assert list(table["interval"])[1:] == ["", ""]  # of one run


def test_a_copied_run_is_not_a_second_measurement() -> None:
    assert list(summarize([record(50), record(50)])["n"]) == [1]


def test_gain_is_positive_where_lower_is_better_and_falls() -> None:
    def error(value: float) -> Metric:
        return Metric(value, "%", higher_is_better=False)

    table = summarize([record(0, metric=error(30)), record(0, SPARK, metric=error(20))])
    assert table["gain"].iloc[1] == 10


def test_markdown_and_csv() -> None:
    table = summarize([record(50.123, SCRATCH), record(60.5, SPARK)])
    markdown, csv = to_markdown(table), to_csv(table)
    assert "not paper numbers" in markdown
    assert "+10.38" in markdown
    assert "±" not in markdown.splitlines()[-1]  # one run has no spread
    assert pd.read_csv(io.StringIO(csv))["mean"].tolist() == [50.123, 60.5]
    measured = summarize([record(50, origin="measured")])
    assert "not paper numbers" not in to_markdown(measured)
    assert readable(measured)["mean ± std"].tolist() == ["50.00"]


def test_a_network_of_ones_own_is_called_by_its_class() -> None:
    table = summarize([record(50, model="some/where/nets.py:Mine"), record(60, SPARK, model="some/where/nets.py:Mine")])
    assert readable(table)["model"].tolist() == ["Mine", "Mine"]
    assert "some/where/nets.py:Mine" in to_csv(table)


def test_latex_has_a_table_for_each_protocol_and_origin() -> None:
    latex = to_latex(summarize([record(50), record(52, seed=1), record(55, origin="measured"), record(60, epochs=9)]))
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 3
    assert r"51.00 $\pm$ 1.41" in latex
    assert r"top1\_last [\%]" in latex
    assert latex.isascii()


def test_collect_keeps_what_is_sound_and_says_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "edited").mkdir()
    record(50).save(tmp_path / "a")
    (tmp_path / "torn/result.json").write_text("{")
    content = json.loads((tmp_path / "a/result.json").read_text())
    content["protocol"]["epochs"] = 99
    (tmp_path / "edited/result.json").write_text(json.dumps(content))
    collected = collect([tmp_path, tmp_path / "a"])  # what is named twice is read once
    assert list(collected.records) == [tmp_path / "a"]
    assert len(collected.left_out) == 2


def test_runs_that_a_study_has_left_behind_are_counted_and_left_out(tmp_path: Path) -> None:
    node = Node("new", "new", "imagenet_finetune", Work("recipe.yaml", tmp_path / "new"), {}, resources=Resources())
    Graph(tmp_path, {"new": node}).save()
    for name, value in (("new", 50), ("old", 60), ("by hand", 70)):
        record(value).save(tmp_path / name)
    for name in ("new", "old", "slurm"):
        (tmp_path / name / "attempts").mkdir(parents=True)
    collected = collect([tmp_path])
    assert {folder.name for folder in collected.records} == {"new", "by hand"}
    (note,) = collected.left_out
    assert note.startswith("runs of earlier settings of a study, 1 in all")
    assert list(collect([tmp_path / "old"]).records) == [tmp_path / "old"]


def test_nothing_to_collect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json"):
        collect([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path, tmp_path / "nowhere"])
