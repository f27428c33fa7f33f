"""The report's page, from runs that never happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from synthetic import SPARK, record, write_run, write_study

from eval_suite.cli import main
from eval_suite.reporting.write import write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a report in it."""
    root = write_study(tmp_path_factory.mktemp("report") / "study")
    write_run(root / "other<b>protocol", record(55, epochs=9))
    Image.new("RGB", (3000, 200), "green").save(root / "other<b>protocol/detections.png")
    write_report([root])
    return root


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    """The study's page."""
    return (study / "report/report.html").read_text()


def rows_of(page: str, title: str) -> list[str]:
    """The rows of the table that follows a heading."""
    body = page.partition(f'id="{title}"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    return re.findall(r"<tr.*?</tr>", body, re.DOTALL)


def test_the_page_needs_nothing_else(page: str) -> None:
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 1 + 3 + 9 + 1  # scaling, curves, reconstructions, detections
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    assert "other<b>" not in page  # escaped


def test_the_last_picture_of_a_pre_training_is_shown(page: str) -> None:
    assert page.count(", epoch 10") == 2 * 9  # caption and description
    assert "epoch 9" not in page


def test_protocols_have_tables_of_their_own_and_say_what_is_special(page: str) -> None:
    assert len(re.findall(r"<h3>imagenet_finetune", page)) == 2
    assert "here epochs = 8." in page
    assert "here epochs = 9." in page
    assert page.count("paired</td>") == 2
    assert "not paper numbers" in page


def test_every_row_links_its_files_checkpoint_and_code(study: Path, page: str) -> None:
    rows = rows_of(page, "runs")
    assert len(rows) == 3 * 6 - 3 - 1 + 1
    for row in rows:
        links = re.findall(r'href="([^"]+)"', row)
        assert {Path(link).name for link in links} >= {"metrics.jsonl", "config.yaml", "result.json"}
        assert all((study / "report" / link.replace("%3C", "<").replace("%3E", ">")).exists() for link in links)
        assert "0.1.0-abc1234" in row
        assert ("encoder.safetensors" in row) == ("<td data-key=\"spark\"" in row)
    for anchor in re.findall(r'href="#(run-\d+)"', page):
        assert f'id="{anchor}"' in page


def test_what_a_study_has_not_finished_is_named(page: str) -> None:
    (row,) = rows_of(page, "missing")
    assert "spark-resnet18-s2" in row


def test_hours_of_pre_trainings_come_from_their_study(page: str) -> None:
    rows = rows_of(page, "effort")
    assert len(rows) == 9 + 15
    assert "<td data-key=\"2.0\">2.000</td>" in rows[0]
    assert "24 runs took" in page


def test_the_report_on_a_report_is_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "run", record(50))
    texts = [write_report(folders, tmp_path / "report").with_name("table.md").read_text()
             for folders in ([tmp_path], [tmp_path, tmp_path])]
    assert texts[0] == texts[1]


def test_report_of_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "only").mkdir()
    record(40, SPARK, origin="measured").save(tmp_path / "only")
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/report.html").read_text()
    assert "no scratch run" in text
    assert "not paper numbers" not in text
    assert "<figure" not in text
    assert "top1_last [%]" in re.sub(r"\s+", " ", capsys.readouterr().out).replace("│", "")
    for name in ("table.md", "table.csv", "table.tex"):
        assert (tmp_path / "report" / name).is_file()


def test_a_report_on_several_folders_needs_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name / "run", record(50))
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *folders]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["report", *folders, "--out", str(tmp_path / "out")]) == 0
    assert "a/run" in (tmp_path / "out/report.html").read_text()
