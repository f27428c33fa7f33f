"""Evaluate checkpoints, and turn the results into tables and a report.

What a notebook needs is here by name; each is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from eval_suite.reporting.write import write_report as write_report
    from eval_suite.tasks.imagenet_finetune import finetune as finetune
    from eval_suite.tasks.knn import knn as knn
    from eval_suite.tasks.linear_probe import probe as probe

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "reporting.write": ["write_report"],
    "tasks.imagenet_finetune": ["finetune"],
    "tasks.knn": ["knn"],
    "tasks.linear_probe": ["probe"],
})  # fmt: skip
