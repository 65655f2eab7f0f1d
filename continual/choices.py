"""What can be chosen: the groups of the config folder and the YAMLs in them, read as plain files."""

from dataclasses import dataclass
from pathlib import Path

LAUNCHER = "hydra/launcher"
"""The group of what starts the runs of a sweep; no part of a run's config."""


@dataclass(frozen=True)
class Choice:
    """One YAML: its name within the group, e.g. ``avalanche/naive``, and the comment on its first line."""

    name: str
    about: str


def conf_directory() -> Path:
    """The configs that come with the package: in the wheel ``continual/conf``, in a checkout ``conf``."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def groups(config_dir: Path | None = None) -> list[str]:
    """Groups of the package's configs and of ``config_dir``, e.g. ``scenario``, ``scenario/source``, ``memory``.

    Of folders within folders only those of scenarios are groups; others are parts of a choice (``avalanche/naive``).
    """
    folders = {path.parent.relative_to(root) for root in roots(config_dir) for path in root.rglob("*.yaml")}
    found = {folder.as_posix() for folder in folders if len(folder.parts) == 1 or folder.parts[:1] == ("scenario",)}
    return sorted(found)


def choices(group: str, config_dir: Path | None = None) -> list[Choice]:
    """What a group offers, without its subgroups that are groups of their own (``scenario/source``)."""
    found: dict[str, Choice] = {}
    for root in roots(config_dir):
        for path in sorted((root / group).rglob("*.yaml")):
            name = path.relative_to(root / group).with_suffix("").as_posix()
            if group != "scenario" or "/" not in name:
                found[name] = Choice(name, _about(path))
    return [found[name] for name in sorted(found)]


def roots(config_dir: Path | None = None) -> list[Path]:
    """The package's config folder, and the user's."""
    return [conf_directory(), *([config_dir] if config_dir else [])]


def _about(path: Path) -> str:
    """The comment on the first line that is not one of Hydra's own (``# @package``)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @")), "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""
