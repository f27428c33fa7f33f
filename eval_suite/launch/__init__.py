"""Where the nodes of a study run: on this machine, or through Slurm. Both know the same three verbs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from eval_suite.study.graph import Graph
from eval_suite.study.status import Queued


class Launcher(Protocol):
    """Starts nodes, knows which of them wait for a machine, and takes them back."""

    def start(self, graph: Graph, names: Collection[str]) -> int:
        """Start nodes, each after those of them that it builds upon; return an exit code.

        Raises:
            UserError: this place cannot give what a node needs.
        """

    def queue(self, graph: Graph) -> Mapping[str, Queued]:
        """Return, for nodes that a scheduler has taken and that have not ended, what it says of them."""

    def cancel(self, graph: Graph, names: Collection[str]) -> list[str]:
        """Stop nodes, and take back those that wait; return the names of those it was told of."""
