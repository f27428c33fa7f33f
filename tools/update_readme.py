"""Copy the demo's results into tools/demo_results/ and the README.

    make demo && python tools/update_readme.py [runs/demo]

The README shows what a run produced and is never edited by hand between the two marks.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from spark.errors import UserError, exits_cleanly
from spark.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "demo_results"
BEGIN = "<!-- demo results: written by tools/update_readme.py -->"
END = "<!-- end of demo results -->"


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Copy table and picture, and rewrite the README's section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/demo"))
    runs = parser.parse_args(arguments).runs
    table = runs / "report" / "table.md"
    pictures = sorted((runs / "pretrain" / "reconstructions").glob("*.png"))
    if not table.is_file() or not pictures:
        raise UserError(f"'{runs}' holds no finished demo; run `make demo` first")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(table, RESULTS / "table.md")
    shutil.copy(pictures[-1], RESULTS / "reconstruction.png")
    readme = ROOT / "README.md"
    write_text(readme, with_section(readme.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")))
    return 0


def with_section(readme: str, table: str) -> str:
    """Put the table and the picture between the two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise UserError(f"README.md has lost its marks '{BEGIN}' and '{END}'")
    picture = (
        "![Each row: what the encoder saw, what the decoder drew around it, the photo]"
        "(tools/demo_results/reconstruction.png)"
    )
    return f"{before}{BEGIN}\n{table.strip()}\n\n{picture}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
