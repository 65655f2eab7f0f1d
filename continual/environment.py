"""Failures of the installation rather than of the config, told in one sentence."""

from collections.abc import Iterator
from importlib import metadata

from continual.errors import UserError

MISMATCH = ("torchvision::nms", "undefined symbol")
"""What torchvision says when it is imported beside a torch that it was not built for."""


def explained(error: BaseException) -> UserError | None:
    """What to tell the user if ``error``, or one that caused it, comes from the installation; else None."""
    for cause in _causes(error):
        if any(sign in str(cause) for sign in MISMATCH):
            pair = " and ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision"))
            return UserError(
                f"{pair} do not belong together, so torchvision cannot be imported; install a matching pair with "
                f"one command and from one place: pip install --upgrade --force-reinstall torch torchvision"
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it, each once: an error that is raised again may be its own cause."""
    following: BaseException | None = error
    met: list[BaseException] = []
    while following is not None and following not in met:
        met.append(following)
        yield following
        following = following.__cause__ or following.__context__
