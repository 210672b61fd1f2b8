"""Paths and folders: links, what a disk may refuse, in named sentences, the exchange of two folders at one instant."""

import ctypes
import errno
import math
import os
import shutil
from pathlib import Path
from typing import Union

from qlib_ext.errors import DataError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)  # EPERM: sandboxes refuse calls they do not know
_THIS_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def real_path(path: Union[str, Path]) -> Path:
    """An absolute path with its links followed: one name for one place.

    Raises
    ------
    DataError
        A link on the way leads nowhere.
    """
    path = Path(path).expanduser().absolute()
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise DataError(f"{place} is a link to {os.readlink(place)}, which is not there; make it, or give another path")
    return path.resolve()


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a folder with all it holds, or a link and not what it leads to."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders of one file system at one instant (renameat2, Linux); False where that cannot be had and nothing changed.

    Raises
    ------
    OSError
        The exchange is supported, but failed.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # another platform, or a C library older than glibc 2.28
        return False
    if call(_THIS_FOLDER, os.fsencode(first), _THIS_FOLDER, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def check_room(out: Path, needed: int) -> None:
    """Refuse to begin when the disk of `out` has less than `needed` bytes free.

    Raises
    ------
    DataError
        Too little room: how much is needed, how much is there.
    """
    if shutil.disk_usage(out.parent).free < needed:
        raise DataError(_no_room(out, needed))


def disk_fault(error: OSError, out: Path, needed: int = 0) -> Exception:
    """The error to raise for what the disk refused while `out` was written: a DataError if it is known, else the error itself."""
    if error.errno in _NO_ROOM:
        return DataError(_no_room(out, needed) + f" ({error.strerror or error})")
    if error.errno in _NOT_ALLOWED:
        place = error.filename or out
        return DataError(f"no permission to write {place} ({error.strerror or error}); nothing was changed: give --out in a "
                         "folder you may write")  # fmt: skip
    return error


def _no_room(out: Path, needed: int) -> str:
    free = shutil.disk_usage(out.parent).free
    wanted = f"needs about {math.ceil(needed / 1e6)} MB, " if needed else ""
    return (f"no space left on the device for {out}: {wanted}{int(free / 1e6)} MB are free; nothing was changed: make room (the "
            "replaced store stays until the new one is complete), or give --out on another disk")  # fmt: skip
