"""What a config can choose from, read from the first comment of each YAML; nothing is imported."""

from pathlib import Path

from continual import choices
from continual.choices import LAUNCHER
from continual.errors import UserError, nearest

HOW = {
    LAUNCHER: "how the runs of a sweep are started: run -m ... hydra/launcher=NAME hydra.launcher.KEY=VALUE",
    "experiment": "a whole setting at once: experiment=NAME",
    "memory": "of one strategy: strategy=er memory@strategy.er.memory=NAME",
    "operator": "around the stream, several in their order: operator=[noise,delay]",
    "scenario/source": "the data of a scenario: scenario/source=NAME",
    "strategy": "several act in their order: strategy=[er,ewc]",
}
"""How to choose, where it is not plainly ``group=NAME``."""


def render(group: str | None = None, config_dir: Path | None = None) -> str:
    """All groups, or one, with one line per choice.

    Raises:
        UserError: there is no such group; the nearest is named.
    """
    groups = [*choices.groups(config_dir), LAUNCHER]
    if group is not None and group not in groups:
        raise UserError(f"there is nothing called '{group}' to list{nearest(group, groups)}")
    return "\n\n".join(_one(name, config_dir) for name in ([group] if group else groups))


def _one(group: str, config_dir: Path | None) -> str:
    found = choices.choices(group, config_dir)
    width = max(len(choice.name) for choice in found)
    title = f"{group}  ({HOW.get(group, f'{group}=NAME')})"
    return "\n".join([title, *(f"  {choice.name.ljust(width)}  {choice.about}".rstrip() for choice in found)])
