"""Errors that are for people: one line that names the thing and the remedy."""

from __future__ import annotations

import difflib
import io
import os
import re
import select
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TextIO

from spark.faults import fault

SECOND_STOP = re.compile(r"(?<=\w[.?!])\.(?=\s|$)")


class UserError(Exception):
    """Bad input. The command line prints the message without a traceback and exits with code 2."""


class RefusedError(UserError):
    """A network has no sparse form, or none that is known to be right."""


class PostponedError(Exception):
    """The work was asked to stop, and is saved. The command line prints the message and exits with `exit_code`."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: not finished, start it again


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b?' for the known names closest to `name`, or '' when none is close."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def in_a_line(message: str) -> str:
    """Return a message in one line; where it ends in another's sentence, one full stop is enough."""
    return SECOND_STOP.sub("", " ".join(message.split()))


def _unread(stream: TextIO) -> bool:
    """Whether whoever read the output has seen enough, and closed it."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # errors are told of, whatever one asks for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def exits_cleanly(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command line's entry point: UserError and PostponedError become a line on stderr and an exit code."""

    @wraps(main)
    def wrapper(*args: object, **kwargs: object) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8, and must be told all the same
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print("error:", in_a_line(str(error)), file=sys.stderr)
            return 2
        except PostponedError as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
        except BrokenPipeError:
            if not _unread(sys.stdout):  # it was another pipe, such as one to a loader's process
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            return 141  # what shells say of SIGPIPE
        except (OSError, RuntimeError) as error:
            if (told := fault(error)) is None:
                raise
            print("error:", told, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapper
