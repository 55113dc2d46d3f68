"""Writing files so that nothing is lost: first under a temporary name, then renamed."""

from __future__ import annotations

import os
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


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` if the block succeeds, else remove it."""
    path = check_output(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
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
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
