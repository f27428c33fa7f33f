"""The table of timm's networks: what counts as convolutional, how verdicts are found, recorded and counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from paths import ROOT

from spark.backbones.timm_model import timm_names
from spark.checks import coverage
from spark.checks.coverage import Row
from spark.cli import main
from spark.errors import UserError
from spark.utils.lock import TakenError


@pytest.mark.parametrize(
    ("model", "verdict", "reason"),
    [
        ("test_resnet", "not measured", ""),
        ("seresnet50", "not measured", ""),  # its gate reduces over the image, which mixes no positions
        ("resnest14d", "not measured", ""),  # SplitAttn is called attention, and is a gate
        ("inception_v3", "not measured", ""),  # does not run without weights: that is for the measurement to tell
        ("ghostnetv2_100", "refused", "pools a map by two"),
        ("convmixer_768_32", "refused", "total stride of 7"),
        ("vit_tiny_patch16_224", "not convolutional", "VisionTransformer"),
        ("mixer_b16_224", "not convolutional", "MlpMixer"),
        ("convit_tiny", "not convolutional", ""),
        ("edgenext_xx_small", "not convolutional", "PositionalEncodingFourier"),
        ("shvit_s1", "not convolutional", "SHSA"),
        ("sequencer2d_s", "not convolutional", "LSTM2d"),
    ],
)
def test_what_can_be_told_without_weights(model: str, verdict: str, reason: str) -> None:
    row = coverage.survey(model)
    assert (row.verdict, row.timm) == (verdict, timm.__version__)
    assert reason in row.reason
    assert int(row.parameters) > 0


def test_a_network_that_timm_cannot_build_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ValueError("no such\nthing")

    monkeypatch.setattr(coverage, "_network", broken)
    row = coverage.survey("resnet18")
    assert (row.verdict, row.reason) == ("error", "ValueError: no such thing")


def test_a_measured_network_has_the_errors_of_both_engines() -> None:
    row = coverage.measure(coverage.survey("test_resnet"), timeout=300, memory=12 * 2**30)
    assert row.verdict == "verified"
    assert 0 < float(row.masked_error) < 1e-9
    assert 0 < float(row.compact_error) < 1e-9


def test_a_network_that_takes_too_long_is_an_error() -> None:
    row = coverage.measure(Row("resnet18", "not measured"), timeout=0, memory=12 * 2**30)
    assert (row.verdict, row.reason) == ("error", "not done after 0 s")


def test_updating_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest first, and everything that was found is in the table at once."""
    table = tmp_path / "coverage.csv"
    names = ["resnet34", "resnet18", "vit_tiny_patch16_224", "ghostnetv2_100"]
    measured: list[str] = []

    def stops(row: Row, timeout: float, memory: int) -> Row:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(row.model)
        return row._replace(verdict="verified")

    monkeypatch.setattr(coverage, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        coverage.update(names, table, missing=True, report=print)
    rows = coverage.read_table(table)
    assert list(rows) == sorted(names)
    assert {name: row.verdict for name, row in rows.items()} == {
        "ghostnetv2_100": "refused",
        "resnet18": "verified",
        "resnet34": "not measured",
        "vit_tiny_patch16_224": "not convolutional",
    }
    monkeypatch.setattr(coverage, "survey", lambda name: pytest.fail("all were looked at"))
    monkeypatch.setattr(coverage, "measure", lambda row, *_: row._replace(verdict="wrong"))
    coverage.update(names, table, missing=True, report=print)
    assert coverage.read_table(table)["resnet34"].verdict == "wrong"
    assert coverage.read_table(table)["resnet18"].verdict == "verified"


def test_a_file_that_is_no_table_is_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no coverage table"):
        coverage.update(["resnet18"], other, missing=True, report=print)
    assert other.read_text() == "a,b\n1,2\n"


def test_one_updates_a_table_at_a_time(tmp_path: Path) -> None:
    table = tmp_path / "coverage.csv"
    code = (
        "from pathlib import Path; from spark.utils.lock import sole_writer_of_file as keep\n"
        f"with keep(Path({str(table)!r})): print(flush=True); input()"
    )
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(TakenError, match=f"coverage.csv' is being written by process {other.pid}"):
            coverage.update(["vit_tiny_patch16_224"], table, missing=True, report=print)
        assert not table.exists()
        other.communicate(b"\n")
    coverage.update(["vit_tiny_patch16_224"], table, missing=True, report=print)
    assert list(coverage.read_table(table)) == ["vit_tiny_patch16_224"]


def test_the_coverage_line_counts_convolutional_names_only() -> None:
    verdicts = ["verified"] * 3 + ["refused", "not measured"] + ["not convolutional"] * 5
    rows = {str(number): Row(str(number), verdict, timm="1.0") for number, verdict in enumerate(verdicts)}
    assert coverage.coverage_line(rows) == (
        "Of the 10 model names of timm 1.0, 5 are purely convolutional: 3 verified (60.0%), "
        "1 refused, 0 wrong, 0 error, 1 not measured."
    )


def test_the_packaged_table_knows_every_name_and_nothing_wrong() -> None:
    rows = coverage.read_table()
    assert list(rows) == sorted(rows)
    assert {row.verdict for row in rows.values()} <= {*coverage.VERDICTS, coverage.OTHER}
    assert not [row for row in rows.values() if row.verdict == "wrong"]
    if {row.timm for row in rows.values()} == {timm.__version__}:
        assert rows.keys() == set(timm_names())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "coverage.csv"
    rows = (
        Row("resnet18", "verified", masked_error="1.0e-15", compact_error="2.0e-15"),
        Row("resnet34", "refused", reason="for a reason"),
        Row("vit_tiny_patch16_224", "not convolutional"),
    )
    coverage.write_table({row.model: row for row in rows}, path)
    return path


def test_models_lists_the_recorded_verdicts(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet[13][48]", "--table", str(table)]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "resnet18 verified 2.0e-15",
        "resnet34 refused for a reason",
        "method spark: 2 purely convolutional: 1 verified, 1 refused; 0 other names match",
    ]
    assert main(["models", "vit_tiny_patch16_224", "--table", str(table)]) == 0
    assert capsys.readouterr().out == "method spark: 0 purely convolutional: none; 1 other names match\n"


def test_models_verifies_and_records(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "test_resnet", "--verify", "--table", str(table)]) == 0
    assert "1 purely convolutional: 1 verified" in capsys.readouterr().out
    assert coverage.read_table(table)["test_resnet"].verdict == "verified"
    assert coverage.read_table(table)["resnet34"].reason == "for a reason"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5O"], "no timm model matches 'resnet5O'. Did you mean resnet50"),
        (["resnet18", "--missing"], "--missing says what to verify; pass --verify too"),
    ],
)
def test_models_refuses_what_means_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_refused_model_is_answered_with_verified_ones(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = coverage.read_table(table) | {"ghostnet_100": Row("ghostnet_100", "verified")}
    monkeypatch.setattr("spark.checks.report.read_table", lambda: rows)
    assert main(["check", "ghostnetv2_100"]) == 2
    assert capsys.readouterr().err.endswith("Verified models of similar names: ghostnet_100.\n")
