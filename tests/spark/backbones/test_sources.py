"""Which files a user's own network is made of."""

from __future__ import annotations

from pathlib import Path

from spark.backbones.sources import helpers


def test_a_helper_that_is_no_python_is_hashed_and_looked_into_no_further(tmp_path: Path) -> None:
    """A network may import it in a `try`, and do without."""
    (tmp_path / "mine.py").write_text("try:\n    import broken\nexcept SyntaxError:\n    pass\nimport whole\n")
    (tmp_path / "broken.py").write_text("import whole (\n")
    (tmp_path / "whole.py").write_text("")
    assert set(helpers(tmp_path / "mine.py", tmp_path)) == {"broken.py", "whole.py"}
