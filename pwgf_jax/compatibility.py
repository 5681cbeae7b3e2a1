"""What this library does not run with, refused at import: package metadata can be overridden."""

from __future__ import annotations

import jaxlib.version

__all__ = ["refuse_broken"]

_BROKEN = {
    "0.10.2": "under jit on CPU it silently miscomputes the pattern that every functional of this library rests on "
    "(https://github.com/jax-ml/jax/issues/39103)",
}


def refuse_broken(version: str) -> None:
    """Refuse a version of jaxlib that gives wrong numbers.

    Args:
        version: of jaxlib, where the compiler sits.

    Raises:
        ImportError: if it is one of those.

    Example:
        >>> refuse_broken("0.10.1")
        >>> refuse_broken("0.10.2")
        Traceback (most recent call last):
        ...
        ImportError: jaxlib 0.10.2 is not usable: under jit on CPU it silently miscomputes the pattern that every \
functional of this library rests on (https://github.com/jax-ml/jax/issues/39103); install another one, \
pip install 'jax!=0.10.2'.
    """
    if version in _BROKEN:
        raise ImportError(
            f"jaxlib {version} is not usable: {_BROKEN[version]}; install another one, pip install 'jax!={version}'."
        )


refuse_broken(jaxlib.version.__version__)
