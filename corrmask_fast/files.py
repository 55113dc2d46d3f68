"""Writing files so that nothing is lost: first under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_output(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Return ``path`` as a Path whose folder exists; refuse to replace a file unless ``overwrite``."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; remove it, or choose another name")
    return path


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
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
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
    path = check_output(path, overwrite=False)
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
