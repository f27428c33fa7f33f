"""What a command line does about what goes wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spark.errors import PostponedError, exits_cleanly


def test_who_has_seen_enough_causes_no_traceback() -> None:
    program = ("from spark.errors import exits_cleanly\n"
               "@exits_cleanly\ndef main():\n    for number in range(100000): print(number)\n"
               "raise SystemExit(main())")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_another_broken_pipe_is_not_hushed_up() -> None:
    @exits_cleanly
    def main() -> None:
        raise BrokenPipeError("to a process that has died")

    with pytest.raises(BrokenPipeError, match="has died"):
        main()


def test_what_was_asked_to_stop_tells_the_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> None:
        raise PostponedError("run was asked to stop and is saved")

    assert main() == 75
    assert capsys.readouterr().err == "run was asked to stop and is saved\n"
