"""The report's page: it needs neither a network nor the runs, and no other file unless it has very many pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval_suite.nested import ABSENT, differing
from eval_suite.reporting import grids
from eval_suite.reporting.curves import Curve, draw_curves
from eval_suite.reporting.effort import Effort, effort_by_checkpoint, efforts
from eval_suite.reporting.grids import Addresses, Grid
from eval_suite.reporting.images import Album, Picture, by_number
from eval_suite.reporting.run_files import DETECTIONS, RECONSTRUCTIONS, RunFiles
from eval_suite.reporting.scaling import scaling_plots
from eval_suite.reporting.study_view import unfinished
from eval_suite.reporting.table_text import interval_note
from eval_suite.reporting.tables import Collected, caution_of
from spark.backbones.names import shown_name
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import ResultRecord
from spark.utils.printable import counted
from spark.utils.provenance import code_version
from spark.visualize.curve import FILE_NAME as CURVE

# What is worth a panel, if a run's log has it.
CURVES = ("loss", "top1_last", "top1_ema", "top1", "knn", "linear", "bbox/AP", "segm/AP")
GALLERY = "detections.html"
PICTURES = "report_pictures"  # folder beside the page
SETTINGS_NAMED = 6  # of those in which protocols differ


@dataclass(frozen=True)
class Section:
    """The results of one task under one protocol, of one origin."""

    title: str
    protocol: str
    origin: str
    note: str
    grid: Grid


@dataclass(frozen=True)
class Page:
    """A page, and the pictures that lie in the folder PICTURES beside it, by name."""

    text: str
    pictures: Mapping[str, bytes]


def render_page(collected: Collected, table: pd.DataFrame, out: Path, trust: Collection[str] = ()) -> Page:
    """Return the page on what was collected, to lie in the folder `out`; of own networks, `trust`'s are counted."""
    records, files = collected.records, collected.files
    where, album = Addresses(out, records, files.folders), Album(PICTURES)
    found = efforts(records, files)
    environment = Environment(loader=PackageLoader("eval_suite"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    content = {
        "sections": list(_sections(table, records, where)),
        "scaling": [(album.drawing(plot.drawing, plot.title), plot.note)
                    for plot in scaling_plots(table, records, effort_by_checkpoint(found), trust)],
        "missing": grids.missing_grid(unfinished(files)), "published": grids.published_grid(),
        "curves": list(_curves(records, files, where, album)),
        "courses": list(_all_of(CURVE, files, where, album)),
        "reconstructions": list(_reconstructions(files, where, album)),
        "detections": list(_detections(files, where, album)),
        "runs": grids.runs_grid(records, where), "effort": grids.effort_grid(found, where), "totals": _totals(found),
    }
    text = environment.get_template("report.html").render(
        caution=caution_of(table), interval_note=interval_note(table), code_version=code_version(),
        left_out=files.left_out, **content)  # by now all has been looked at
    return Page(text, album.beside)


def _sections(table: pd.DataFrame, records: Mapping[Path, ResultRecord], where: Addresses) -> Iterator[Section]:
    """Yield a table for each protocol: what may not be compared stands apart."""
    protocols = {record.protocol_id: record for record in records.values()}
    for key, rows in table.groupby(["task", "protocol", "origin"], sort=False):
        task, protocol, origin = map(str, key)
        others = [record for record in protocols.values() if record.task == task]
        yield Section(task, protocol, origin, _protocol_note(protocols[protocol], others),
                      grids.summary_grid(rows, records, where))


def _protocol_note(own: ResultRecord, all_of_task: Sequence[ResultRecord]) -> str:
    """Name what is special about a protocol, where a task has several."""
    if len(all_of_task) < 2:
        return ""
    number = all_of_task.index(own)
    settings = [f"{name} = {values[number]}"
                for name, values in differing([record.protocol for record in all_of_task]).items()
                if values[number] is not ABSENT]
    more = f" and {len(settings) - SETTINGS_NAMED} more" if len(settings) > SETTINGS_NAMED else ""
    return f"Not comparable with the other protocols of this task; here {', '.join(settings[:SETTINGS_NAMED])}{more}."


def _curves(
    records: Mapping[Path, ResultRecord], files: RunFiles, where: Addresses, album: Album
) -> Iterator[Picture]:
    """Yield a figure for each task and protocol, one for pre-trainings and one for what is not finished."""
    groups: dict[str, list[Curve]] = defaultdict(list)
    for path in files.below(METRICS):
        folder = path.parent
        record = records.get(folder)
        if record:
            title = f"{record.task}, protocol {record.protocol_id}"
            group = f"{shown_name(record.model)}, {record.init.kind}"
        else:
            title = "pre-training" if _is_pretraining(folder) else "unfinished"
            group = _named_by_config(folder, files) or where.name(folder)
        groups[title].append(Curve(group, files.log(folder)))
    for title, curves in sorted(groups.items(), key=lambda item: item[0] != "pre-training"):
        if drawing := draw_curves(curves, CURVES):
            yield album.drawing(drawing, title)


def _named_by_config(folder: Path, files: RunFiles) -> str:
    """Return "resnet50, 300 epochs", which repetitions share; "" if the configuration does not tell."""
    model, epochs = files.setting(folder, "model", "name"), files.setting(folder, "train", "epochs")
    return f"{shown_name(str(model))}, {epochs} epochs" if model and epochs else ""


def _is_pretraining(folder: Path) -> bool:
    return (folder / RECONSTRUCTIONS).is_dir() or (folder / "encoder.json").is_file()


def _reconstructions(files: RunFiles, where: Addresses, album: Album) -> Iterator[Picture]:
    """Yield the last image of each pre-training; the folder of all is a link away."""
    for folder in (path for path in files.below(RECONSTRUCTIONS) if path.is_dir()):
        images = sorted(folder.glob("[!.]*.png"), key=by_number)
        caption = f"{where.name(folder.parent)}, {images[-1].stem.replace('_', ' ')}" if images else ""
        if images and (picture := files.try_to(partial(album.file, images[-1], caption, where.of(folder)))):
            yield picture


def _detections(files: RunFiles, where: Addresses, album: Album) -> Iterator[Picture]:
    """Yield the sheet of each detector; the whole gallery is a link away."""
    for path in files.below(DETECTIONS):
        gallery = path.with_name(GALLERY)
        link = gallery if gallery.is_file() else path
        if picture := files.try_to(partial(album.file, path, where.name(path.parent), where.of(link))):
            yield picture


def _all_of(name: str, files: RunFiles, where: Addresses, album: Album) -> Iterator[Picture]:
    for path in files.below(name):
        if picture := files.try_to(partial(album.file, path, where.name(path.parent), where.of(path))):
            yield picture


def _totals(found: Mapping[Path, Effort]) -> str:
    """Return the sum of hours, of GPUs and of processors apart."""
    gpu = sum(effort.gpu_hours or 0 for effort in found.values())
    cpu = sum(effort.hours or 0 for effort in found.values() if not effort.gpus)
    unknown = sum(effort.hours is None for effort in found.values())
    parts = [f"{hours:,.2f} {name}" for hours, name in ((gpu, "GPU-hours"), (cpu, "hours without a GPU")) if hours]
    rest = f"; the time of {unknown} was not noted" if unknown else ""
    return f"{counted(len(found), 'run')} took {' and '.join(parts) or 'no time that was noted'}{rest}."
