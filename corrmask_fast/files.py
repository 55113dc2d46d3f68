"""Writing files so that nothing is lost: first under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return where to write a file, as given, or raise InputError: to be called before the work, not after it.

    A file that is there is replaced; a folder is refused, and what is no ordinary file (``/dev/null``), for it would be
    replaced too. A link is followed: all this goes for what it leads to.
    """
    path = Path(path)
    target = target_of(path) if path.is_symlink() else path
    if target.is_symlink():
        raise InputError(
            f"cannot write {path}: it is a link that leads back to itself; remove it, or choose another name"
        )
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; give the name of a file")
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it is no ordinary file; give the name of one")
    _check_can_write_in(target.parent, target)
    return path


def check_not_input(output: str | os.PathLike[str], source: Any, name: str = "output") -> None:
    """Raise InputError if ``output`` leads to what is read (a path; anything else passes), or to a part of it."""
    if isinstance(source, str | os.PathLike):
        read, path = target_of(source), target_of(output)
        if path == read or (read in path.parents and path.exists()):
            raise InputError(f"{name} would replace {output}, which is read here; give another name")


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path with links followed; links that lead back to themselves remain."""
    return Path(os.path.realpath(path))


def check_output_folder(path: str | os.PathLike[str], *, new: bool = False) -> Path:
    """Return a folder to write into, or where to make it, or raise InputError; ``new``: it must not be there yet."""
    path = Path(path)
    if new and os.path.lexists(path):
        raise InputError(f"{path} exists already; remove it, or choose another name")
    if path.exists() and not path.is_dir():
        raise InputError(f"cannot write to {path}: it is a file; give the name of a folder")
    _check_can_write_in(path if path.is_dir() else path.parent, path)
    return path


def _check_can_write_in(folder: Path, path: Path) -> None:
    if not folder.exists():
        raise InputError(f"cannot write {path}: the folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file and no folder; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {path}: the folder {folder} may not be written to; change its permissions, or choose "
            "another place"
        )


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Say which file a full disk kept from being written: libraries report it in many ways, or as a bare number."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if code is None and (said := re.search(r"\(os error (\d+)\)", str(error))):  # as Rust puts it
            code = int(said[1])
        if code not in FULL:
            raise
        text = f"{os.strerror(code)}; nothing is left half-written; free some space, or write elsewhere"
        raise OSError(code, text, str(path)) from error


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it."""
    path = check_output(path)
    path = target_of(path) if path.is_symlink() else path  # the link stays
    with _full_disk_named(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _full_disk_named(path):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide the file from colleagues
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like :func:`atomic_file` for a folder, which must not exist yet."""
    path = check_output_folder(path, new=True)
    with _full_disk_named(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _full_disk_named(path):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
