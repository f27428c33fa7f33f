"""What a finished node tells: how long it took over all attempts, and on how many GPUs."""

from __future__ import annotations

import dataclasses
import json
import os
import time

from study_folder import StudyFolder

from eval_suite.study.attempt import Attempt
from eval_suite.study.progress import mark_finished, read_finished


def test_attempts_that_were_cut_off_count_as_long_as_they_were_seen(study: StudyFolder) -> None:
    node = next(iter(study.graph()))
    node = dataclasses.replace(node, resources=dataclasses.replace(node.resources, gpus_per_process=4))
    with Attempt(node.folder) as first:
        pass
    path = node.folder / "attempts" / f"{first.number:04d}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "process": (1, 1), "started": time.time() - 9000, "ended": None}))
    os.utime(path, (time.time() - 1800,) * 2)  # two hours after it began
    with Attempt(node.folder):
        mark_finished(node, {})
    mark = read_finished(node)
    assert mark is not None
    assert 7200 <= mark.seconds < 7260
    assert mark.gpus == 4
