"""A finished study as files: an experiment to run, and every trial that led to it."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from continual.choices import groups
from continual.files import write_atomic
from continual.manifest import PACKAGES, origin, redact_command, version
from continual.overrides import parse
from continual.tuning.space import at, texts
from continual.tuning.study import Plan, Study


def name_of(study: Study) -> str:
    """Name of the experiment, e.g. ``tuned_split-digits_er``."""
    return re.sub(r"[^\w.-]", "_", f"tuned_{study.config.scenario}_{study.config.name}")


def write(study: Study, plan: Plan, folder: Path, command: Sequence[str], config_dir: str | Path | None = None) -> Path:
    """Write ``folder/experiment/<name>.yaml``, and ``<name>.json`` with all trials beside it; the path of the YAML."""
    path = folder / "experiment" / f"{name_of(study)}.yaml"
    told = provenance(study, plan, command)
    write_atomic(path.with_suffix(".json"), (json.dumps(told, indent=1) + "\n").encode())
    write_atomic(path, experiment(study, told, Path(config_dir) if config_dir is not None else None).encode())
    return path


def provenance(study: Study, plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """How the values were found."""
    assert study.best is not None
    sha, dirty = origin()
    return {
        "name": study.config.name,
        "scenario": study.config.scenario,
        "command": " ".join(redact_command(command)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": sha,
        "dirty": dirty,
        "versions": {name: version(name) for name in (*PACKAGES, "optuna")},
        "tasks": plan.n_tasks,
        "held_out": plan.fraction,
        "metric": plan.metric,
        "seeds": list(study.seeds),
        "space": list(map(str, study.axes)),
        "defaults": {a.key: at(study.config.resolved, a.key) for a in study.axes},
        "chosen": dict(study.best.values),
        "reached": list(study.best.reached),
        "trials": [
            {"values": dict(t.values), "reached": list(t.reached), "forward_equivalents": t.forward_equivalents}
            | ({"error": t.error} if t.error else {})
            for t in study.trials
        ],
    }


def experiment(study: Study, told: Mapping[str, Any], config_dir: Path | None = None) -> str:
    """The YAML: the method as it was given, and the chosen values, with their provenance above."""
    assert study.best is not None
    known = set(groups(config_dir))
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    for override in parse([*study.overrides, *texts(study.best.values)], config_dir):
        group = str(override.key_or_group)
        if group == "experiment":
            chosen = override.value()
            defaults += chosen if isinstance(chosen, list) else [chosen]
        elif group in known:
            package = f"@{override.package}" if override.package else ""
            defaults.append({f"override /{group}{package}": override.value()})
        else:
            _put(values, group, override.value())
    body = yaml.safe_dump({"defaults": [*defaults, "_self_"], **values}, sort_keys=False, allow_unicode=True)
    held, seeds = f"{told['held_out']:g} of their training rows held out", ", ".join(map(str, told["seeds"]))
    lines = [
        "# @package _global_",
        f"# {told['name']} on {told['scenario']}: chosen on its first tasks, then frozen",
        f"# {len(told['trials'])} trials on the first {told['tasks']} tasks; {held}; seeds {seeds}",
        f"# {told['metric']} on the held-out rows: {study.best.value:.4f}; space: {'; '.join(told['space'])}",
        f"# {told['created']}, commit {str(told['commit'])[:12]}{' with changes' if told['dirty'] else ''}",
        f"# {told['command']}",
    ]
    return "\n".join([*lines, body])


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
