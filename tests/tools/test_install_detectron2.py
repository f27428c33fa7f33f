"""The installer leaves what is there alone and refuses a file that is not the reviewed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from paths import ROOT

SCRIPT = ROOT / "tools" / "install_detectron2.py"


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_installed_detectron2_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("# somebody's own build\n")
    result = run("--target", str(tmp_path))
    assert result.returncode == 0
    assert "left as it is" in result.stdout
    assert [path.name for path in tmp_path.rglob("*.py")] == ["__init__.py"]


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "sal_detectron2-0.7.2.whl"
    wheel.write_bytes(b"not the wheel")
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import install_detectron2 as tool\n"
        "from pathlib import Path\n"
        "from spark.errors import exits_cleanly\n"
        f"sys.exit(exits_cleanly(tool.check)(Path({str(wheel)!r})))"
    )
    result = run(code=code)
    assert result.returncode == 2
    assert "expected 491af0c7" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_contradicting_options_are_one_line() -> None:
    result = run("--from-source", "--target", "/nonexistent")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --from-source")
    assert len(result.stderr.splitlines()) == 1
