"""Where the nodes of a study run: on this machine, or through Slurm. Both know the same two verbs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from eval_suite.study.graph import Graph


class Launcher(Protocol):
    """Starts nodes, and takes them back."""

    def start(self, graph: Graph, names: Collection[str]) -> int:
        """Start nodes, each after those of them that it builds upon; return an exit code.

        Raises:
            UserError: this place cannot give what a node needs.
        """

    def cancel(self, graph: Graph) -> list[str]:
        """Stop the study's nodes, and take back those that wait; return the names of those it was told of."""
