"""Which machine produced a number."""

from __future__ import annotations

import pytest
import torch

from spark.utils.provenance import gpus_in, hardware


@pytest.mark.parametrize(("words", "gpus"), [
    ("8x NVIDIA H200", 8), ("Intel(R) Xeon(R) Processor, 2 threads", 0), ("", 0), ("Fast x Chip", 0),
])
def test_gpus_are_read_from_the_words_for_hardware(words: str, gpus: int) -> None:
    assert gpus_in(words) == gpus


def test_a_processor_has_no_gpus() -> None:
    assert gpus_in(hardware(torch.device("cpu"))) == 0
