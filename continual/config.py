"""Compose a config, fence it, check it, build its objects. The only importer of hydra and omegaconf."""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from continual import fence
from continual.choices import choices, conf_directory, groups
from continual.errors import UserError, nearest
from continual.signatures import check_calls

NONE_WHEN_EMPTY = ("scheduler", "clip", "augment")
ALWAYS_READ = frozenset({"scenario", "operator", "learner", "probe", "track"})
INDECISIVE = frozenset({"track", "device", "output", "name"})


@dataclass(frozen=True)
class Config:
    """One run's config.

    Attributes:
        unresolved: as written, interpolations kept; this is what is saved and shown.
        resolved: plain values.
        chosen: group -> choice, e.g. ``{"scenario": "split", "scenario/source": "digits"}``.
        allow: packages outside the fence that the command line allowed.
    """

    unresolved: dict[str, Any]
    resolved: dict[str, Any]
    chosen: dict[str, str]
    allow: tuple[str, ...] = ()

    @property
    def scenario(self) -> str:
        """Name of the stream: scenario, source, operators, e.g. ``split-digits+noise``."""
        stream = "-".join(self.chosen[g] for g in ("scenario", "scenario/source") if self.chosen.get(g))
        return "+".join([stream, *self.resolved["operator"]])

    @property
    def name(self) -> str:
        """What is compared: the strategies, or the learner where it takes none."""
        if self.resolved["name"] is not None:
            return str(self.resolved["name"])
        learner = self.chosen["learner"].replace("/", "_")
        return ("+".join(self.resolved["strategy"]) or "none") if learner == "sgd" else learner

    @property
    def hash(self) -> str:
        """8 hex digits of what decides the results: all but tracking, device, place and name."""
        decisive = {key: value for key, value in self.resolved.items() if key not in INDECISIVE}
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=4).hexdigest()

    @property
    def directory(self) -> Path:
        """``<output>/<scenario>/<name>/seed<k>-<hash>``."""
        return Path(self.resolved["output"]) / self.scenario / self.name / f"seed{self.resolved['seed']}-{self.hash}"


def compose(*overrides: str, config_dir: str | Path | None = None, allow: Sequence[str] = ()) -> Config:
    """The config of one run.

    Args:
        overrides: as on the command line, e.g. ``"strategy=[er,ewc]"``, ``"strategy.er.n_replay=20"``.
        config_dir: a folder with more configs, laid out like ``conf/``; its parent is put on ``sys.path``.
        allow: packages outside the fence that it may name.

    Raises:
        UserError: a key or choice that does not exist (the nearest is named), a target outside the fence,
            a group that nothing reads, a value of the wrong type.
    """
    folder = _use(Path(config_dir)) if config_dir is not None else None
    parsed = _parse(overrides, folder)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} names several values; add -m to run them all")
    cfg, chosen = _compose(parsed, folder)
    unresolved = _container(cfg, resolve=False)
    fence.check(unresolved, allow)
    config = Config(unresolved, _container(cfg, resolve=True), chosen, tuple(allow))
    _check_groups_are_read(config, parsed)
    _check_plain(config)
    check_calls({key: config.resolved[key] for key in _built(config)}, config.allow)
    return config


def expand(
    overrides: Sequence[str], config_dir: str | Path | None = None, allow: Sequence[str] = ()
) -> list[Config]:
    """The configs of a sweep: every combination of the values named, the last override varying fastest.

    ``strategy=er,derpp 'seed=range(5)'`` gives 10. All are checked before any is run.
    """
    folder = _use(Path(config_dir)) if config_dir is not None else None
    axes: list[list[str]] = []
    for override in _parse(overrides, folder):
        if override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([str(override.input_line)])
    return [compose(*job, config_dir=config_dir, allow=allow) for job in itertools.product(*axes)]


def build_stream(config: Config) -> Any:
    """The stream, operators applied in their order."""
    parts = _instantiate({"scenario": config.resolved["scenario"], "operator": config.resolved["operator"]})
    stream = parts["scenario"]
    for operator in parts["operator"].values():
        stream = operator(stream)
    return stream


def build_learner(config: Config, spec: Any) -> Any:
    """The learner for streams of ``spec``."""
    node = dict(config.resolved["learner"])
    for key in NONE_WHEN_EMPTY:
        if key in node and not node[key]:
            node[key] = None
    return _call(_instantiate({"learner": node})["learner"], spec)


def build(config: Config, group: str) -> Any:
    """The object of another group, e.g. ``probe`` or ``track``."""
    return _instantiate({group: config.resolved[group]})[group]


def from_manifest(manifest: Mapping[str, Any], allow: Sequence[str] = ()) -> Config:
    """The config a run was made with, fenced again: a run directory may come from somebody else."""
    resolved = dict(manifest["resolved"])
    fence.check(resolved, allow)
    config = Config(resolved, resolved, dict(manifest["chosen"]), tuple(allow))
    check_calls({"learner": resolved["learner"]}, config.allow)
    return config


def _call(partial: Any, spec: Any) -> Any:
    try:
        return partial(spec=spec)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"the learner cannot be built for rows of shape {spec.in_shape}: {error}") from error


def _instantiate(node: dict[str, Any]) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except HydraException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
            if isinstance(cause, UserError):
                raise cause from None
        raise UserError(f"the config cannot be built: {str(error).splitlines()[0]} ({cause})") from error


def _use(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder; looked in {folder.absolute()}")
    parent = str(folder.absolute().parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    return folder


def _parse(overrides: Sequence[str], folder: Path | None) -> list[Override]:
    try:
        parsed = [OverridesParser.create().parse_overrides([text])[0] for text in overrides]
    except HydraException as error:
        raise UserError(f"an override cannot be read: {str(error).splitlines()[0]}; write key=value") from None
    known = groups(folder)
    return [_checked_choice(override, known, folder) for override in parsed]


def _checked_choice(override: Override, known: Sequence[str], folder: Path | None) -> Override:
    """Refuse a choice that a group does not have, and read an empty list as ``none``."""
    group = str(override.key_or_group)
    if group.startswith("hydra"):
        raise UserError(f"{override.input_line}: hydra's own settings are not used here; -m runs sweeps in one process")
    if group not in known or override.is_delete():
        return override
    value = override.value() if not override.is_sweep_override() else None
    if value == []:
        return OverridesParser.create().parse_overrides([f"{override.get_key_element()}=none"])[0]
    if override.is_sweep_override():
        names = [name for choice in override.sweep_string_iterator() for name in str(choice).strip("[]").split(",")]
    else:
        names = [str(item) for item in (value if isinstance(value, list) else [value])]
    offered = [choice.name for choice in choices(group, folder)]
    for name in names:
        if name not in (*offered, "None") and name:
            raise UserError(f"{group}={name} does not exist{nearest(name, offered)}")
    return override


def _compose(parsed: Sequence[Override], folder: Path | None) -> tuple[DictConfig, dict[str, str]]:
    search = [f"hydra.searchpath=[file://{folder.absolute()}]"] if folder else []
    lines = [str(override.input_line) for override in parsed]
    with initialize_config_dir(str(conf_directory().absolute()), version_base="1.3"):
        try:
            cfg = hydra_compose("config", overrides=[*search, *lines], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained(error, parsed, search) from None
    chosen = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if not group.startswith("hydra")}
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return own, {group: str(choice) for group, choice in chosen.items() if choice is not None}


def _explained(error: Exception, parsed: Sequence[Override], search: Sequence[str]) -> UserError:
    """Our own words for a key that does not exist: the first part that is wrong, and its nearest neighbour."""
    known = groups()
    chosen = [str(o.input_line) for o in parsed if str(o.key_or_group) in known]
    try:
        cfg = hydra_compose("config", overrides=[*search, *chosen])
    except (HydraException, OmegaConfBaseException):
        return UserError(f"the config cannot be composed: {str(error).splitlines()[0]}")
    for override in parsed:
        if str(override.input_line) in chosen or override.is_add():
            continue
        node: Any = cfg
        parts = str(override.key_or_group).split(".")
        for depth, part in enumerate(parts):
            children = list(map(str, node.keys())) if isinstance(node, DictConfig) else []
            if part not in children:
                where = ".".join(parts[:depth])
                options = children if where else [*children, *known]
                return UserError(f"{override.input_line}: there is no key '{part}'{' in ' + where if where else ''}"
                                 f"{nearest(part, options)}")
            node = node._get_node(part)
    return UserError(f"the config cannot be composed: {str(error).splitlines()[0]}")


def _container(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(cfg, resolve=resolve)
    except OmegaConfBaseException as error:
        raise UserError(f"the config has a reference that leads nowhere: {str(error).splitlines()[0]}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_groups_are_read(config: Config, parsed: Sequence[Override]) -> None:
    """A group that was chosen, and that neither we nor the learner read, is a mistake."""
    read = set(ALWAYS_READ) | _referenced({key: config.unresolved[key] for key in ALWAYS_READ})
    named = {str(override.key_or_group).split(".")[0].split("/")[0] for override in parsed}
    for group in {g.split("/")[0] for g in groups()} - {"experiment", "memory"}:
        empty = config.unresolved.get(group) in ({}, None)
        if group not in read and not empty and (group in named or group in ("strategy", *NONE_WHEN_EMPTY)):
            raise UserError(
                f"learner={config.chosen['learner']} takes no {group}, and {group}={config.chosen.get(group)} was given; "
                f"leave it out or use learner=sgd"
            )


def _referenced(node: Any) -> set[str]:
    """Top-level keys that plain interpolations below ``node`` refer to."""
    if isinstance(node, Mapping):
        return set().union(*(_referenced(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*map(_referenced, node))
    return {node[2:-1].split(".")[0]} if isinstance(node, str) and node.startswith("${") else set()


def _check_plain(config: Config) -> None:
    """The keys that belong to no group."""
    known = {"seed", "train", "threads", "device", "output", "name"}
    unknown = set(config.resolved) - known - {g.split("/")[0] for g in groups()}
    for key in sorted(unknown):
        raise UserError(f"{key} is a key that nothing reads{nearest(key, known | set(groups()))}")
    seed, threads = config.resolved["seed"], config.resolved["threads"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed!r} must be an integer of at least 0; sweep several with -m 'seed=range(5)'")
    if threads != "auto" and (not isinstance(threads, int) or threads < 1):
        raise UserError(f"threads={threads!r} must be an integer of at least 1, or auto")


def _built(config: Config) -> Iterator[str]:
    """Keys whose targets are called."""
    return (key for key in config.resolved if key in ALWAYS_READ)
