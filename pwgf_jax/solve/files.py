"""Files that are replaced as a whole: whatever stops the writing, what was there before is still there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once it is written and on the disk.

    A crash, a kill or a full disk in between leaves the old file. Where ``path`` is a symbolic link the link is
    replaced, never what it points to.

    Args:
        path: the file to replace, or to make.

    Yields:
        The new file, to write bytes to, and to read them back.

    Raises:
        OSError: if it cannot be written; the old file is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as file:
        ...         _ = file.write(b"whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # left by a kill, or a link that would be written through
    try:
        with open(part, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or after a power cut the new name may hold nothing
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
