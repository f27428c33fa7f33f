"""Sparse (submanifold) convolution for dense networks: state, engines, conversion and its verification."""

from spark.sparse.convert import ENGINES, sparsify
from spark.sparse.rule import LayerRule
from spark.sparse.state import VisiblePatches

__all__ = ["ENGINES", "LayerRule", "VisiblePatches", "sparsify"]
