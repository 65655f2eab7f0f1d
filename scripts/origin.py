"""Where a result comes from: the commit, whether anything but ``docs`` differs from it, and versions."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continual.manifest import version

ROOT = Path(__file__).resolve().parents[1]


def code_state(packages: Sequence[str]) -> dict[str, Any]:
    """``commit``, ``dirty`` (results are written below ``docs``, which does not count) and ``versions``."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    dirty = bool(_git("status", "--porcelain", "--", ".", ":!docs"))
    return {"commit": _git("rev-parse", "HEAD"), "dirty": dirty, "versions": versions}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
