"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from spark.errors import UserError
from spark.faults import fault


@contextmanager
def atomic_path(destination: Path | str) -> Iterator[Path]:
    """Yield a temporary, empty file beside `destination`; on success it is fsynced and renamed over it.

    It has the mode that the umask gives to new files, whichever the saver gave it (safetensors gives its own 0600).
    If the body raises, the temporary file is removed and `destination` is left as it was.

    Raises:
        UserError: the destination is a folder, its folder cannot be made, the disk is full or fails.
    """
    destination = Path(destination)
    try:
        if destination.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(destination, error) from None
    # The suffix is kept: savers such as matplotlib and numpy choose their format by it. The name is always the
    # same, so what a killed process leaves behind is overwritten by the next.
    temporary = destination.with_name(f".{destination.stem}.tmp{destination.suffix}")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, destination)
        _fsync_folder(destination.parent)
    except OSError as error:  # a full disk, no permission
        raise cannot_write(destination, error) from None
    except Exception as error:
        if fault(error, destination):  # as torch and safetensors tell of it
            raise cannot_write(destination, error) from None
        raise
    finally:
        with suppress(OSError):  # it says nothing new of a drive that is gone
            temporary.unlink(missing_ok=True)


def cannot_write(destination: Path, error: Exception) -> UserError:
    """Return the error to raise where something cannot be written, which names the remedy where there is one."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UserError(fault(error, destination) or f"cannot write '{destination}': {reason}")


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Let what the body writes to `destination` fail with a line for people.

    Raises:
        UserError: the disk is full or fails, there is no permission.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(destination, error) from None


def torch_save(content: Any, path: Path) -> None:
    """Write `content` with torch.save; given a path, that would write by itself, and not tell why it could not."""
    import torch  # slow; a mistake in a recipe is told without it

    with open(path, "wb") as file:
        torch.save(content, file)


def create_whole(path: Path, text: str) -> None:
    """Create a file with all of its text, or not at all.

    Raises:
        FileExistsError: there is one of that name, perhaps of another process that was faster.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(destination: Path | str, text: str) -> None:
    """Atomically write `text` as UTF-8; bytes of files' names that are none are written as escapes."""
    with atomic_path(destination) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(destination: Path | str, value: Any) -> None:
    """Atomically write `value` as indented JSON; NaN and infinity are refused (they are not JSON)."""
    write_text(destination, json.dumps(value, indent=2, allow_nan=False) + "\n")


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read; never wait for one that is none, such as a pipe.

    Raises:
        OSError: it is not there, or no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))
    return file


def read_regular(path: Path | str, what: str, most: int) -> bytes:
    """Return the content of a file that people write.

    Args:
        path: of the file.
        what: it is, for messages.
        most: bytes that such a file has.

    Raises:
        UserError: it is not there, no regular file, or larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise UserError(f"{what} '{path}' has more than {most:,} bytes; is it another file?")
    return content


def sha256(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else (
            hashlib.sha256(file.read()).hexdigest()
        )


def _fsync_folder(folder: Path) -> None:
    """Make a rename durable (a no-op on file systems that do not support it)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
