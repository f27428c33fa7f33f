"""One writer at a time: the system's lock, which ends with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paths import ROOT

from spark.errors import UserError
from spark.utils import lock
from spark.utils.files import write_text
from spark.utils.lock import NAME, TakenError, sole_writer, sole_writer_of_file

KEEP = """
import sys
from pathlib import Path
from spark.utils.lock import sole_writer, sole_writer_of_file
with (sole_writer if sys.argv[1] == "folder" else sole_writer_of_file)(Path(sys.argv[2])):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kind: str, place: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process keep a place while the body runs."""
    with subprocess.Popen(
        [sys.executable, "-c", KEEP, kind, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(("kind", "keep"), [("folder", sole_writer), ("file", sole_writer_of_file)])
def test_the_second_is_refused_until_the_first_is_gone(kind: str, keep, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place.5"
    with another(kind, place) as holder:
        with pytest.raises(TakenError, match=rf"is being written by process {holder.pid} on \S+ since \d{{4}}-"), (
            keep(place)):
            pass
        holder.kill()
        holder.wait()
        with keep(place):
            pass


def test_nothing_is_left(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / NAME).is_file()
    assert not list(tmp_path.iterdir())
    with sole_writer(tmp_path / "a"):
        (tmp_path / "a" / "written").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["written"]


def test_what_a_killed_process_left_behind_means_nothing(tmp_path: Path) -> None:
    for text in ("", "[1]", '{"machine": "elsewhere/x", "process": 1, "started": 1, "since": "x"}'):
        (tmp_path / NAME).write_text(text)
        with sole_writer(tmp_path):
            pass


def test_without_locks_of_the_file_system_the_holder_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(lock.CANNOT_LOCK[0], "no locks available")

    with another("folder", tmp_path) as holder, monkeypatch.context() as patch:
        patch.setattr(lock.fcntl, "lockf", unsupported)
        with pytest.raises(TakenError), sole_writer(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with sole_writer(tmp_path):
            pass


def test_a_job_of_slurm_waits_for_its_earlier_go_on_a_broken_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server keeps the locks of a machine that broke for a while."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with another("folder", tmp_path) as holder:
        content = (tmp_path / NAME).read_text()
        with pytest.raises(TakenError), sole_writer(tmp_path):  # here it would be known to be gone
            pass
        (tmp_path / NAME).write_text(content.replace('"machine": "', '"machine": "broken-'))
        monkeypatch.setattr(lock.time, "sleep", lambda _: (holder.kill(), holder.wait()))
        with sole_writer(tmp_path):
            pass


def test_where_nothing_can_be_written_the_body_tells_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), sole_writer(tmp_path / "file"):
        write_text(tmp_path / "file" / "text", "")
