"""Where a result comes from: the commit, whether anything but ``docs`` differs from it, and versions."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continual.manifest import commit, version

ROOT = Path(__file__).resolve().parents[1]


def code_state(packages: Sequence[str]) -> dict[str, Any]:
    """``commit``, ``dirty`` (results are written below ``docs``, which does not count) and ``versions``."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    sha, dirty = commit(ROOT, untracked=True, without="docs")
    return {"commit": sha, "dirty": dirty, "versions": versions}
