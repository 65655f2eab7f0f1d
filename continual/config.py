"""Compose a config, fence it, check it, build its objects. The only importer of hydra and omegaconf."""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from continual import fence
from continual.choices import conf_directory, groups
from continual.environment import explained
from continual.errors import UserError, nearest
from continual.overrides import explain, parse, values
from continual.signatures import check_calls

NONE_WHEN_EMPTY = ("scheduler", "clip", "augment")
ALWAYS_READ = frozenset({"scenario", "operator", "learner", "probe", "snapshot", "track"})
INDECISIVE = frozenset({"track", "snapshot", "device", "output", "name"})
READING = frozenset({"workers", "cache_mb"})  # of a source: how its rows are read, not which
LATER = {"precision": "float32", "channels_last": False, "cuda_graphs": False}
"""Settings that came later, at what runs had done before."""
NAME = re.compile(r"\w[\w.+-]*")


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
        """What is compared: the strategies, after the learner if it is not ``sgd``; or a learner that takes none."""
        if self.resolved["name"] is not None:
            return str(self.resolved["name"])
        learner = self.chosen["learner"].replace("/", "_")
        if "strategy" not in self.read:
            return learner
        strategies = "+".join(self.resolved["strategy"]) or "none"
        return strategies if learner == "sgd" else f"{learner}-{strategies}"

    @property
    def read(self) -> set[str]:
        """Groups that the learner reads, e.g. ``{"model", "optimizer", "strategy", ...}``."""
        return _referenced(self.unresolved["learner"])

    @property
    def hash(self) -> str:
        """8 hex digits of what decides the results: all but tracking, device, place and name."""
        decisive = {
            key: _decisive(value, self.unresolved[key]) for key, value in self.resolved.items() if key not in INDECISIVE
        }
        for group in ("train", "learner"):
            for name, neutral in LATER.items():
                if decisive[group].get(name) == neutral:
                    del decisive[group][name]
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=4).hexdigest()

    @property
    def directory(self) -> Path:
        """``<output>/<scenario>/<name>/seed<k>-<hash>``."""
        return Path(self.resolved["output"]) / self.scenario / self.name / f"seed{self.resolved['seed']}-{self.hash}"


def _decisive(resolved: Any, written: Any) -> Any:
    """``resolved`` without the values that were written as a reference to the device, and without how rows are read."""
    if not isinstance(resolved, Mapping) or not isinstance(written, Mapping):
        return resolved
    kept = [key for key in resolved if written[key] != "${device}" and key not in READING]
    return {key: _decisive(resolved[key], written[key]) for key in kept}


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
    folder = make_importable(config_dir, allow)
    parsed = parse(overrides, folder)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} names several values; add -m to run them all")
    cfg, chosen = _compose(parsed, folder)
    unresolved = _container(cfg, resolve=False)
    fence.check(unresolved, allow)
    config = Config(unresolved, _container(cfg, resolve=True), chosen, tuple(allow))
    _check_groups_are_read(config, parsed)
    _check_switches_are_read(config)
    _check_plain(config, folder)
    check_calls({key: config.resolved[key] for key in _built(config)}, config.allow)
    return config


def expand(overrides: Sequence[str], config_dir: str | Path | None = None, allow: Sequence[str] = ()) -> list[Config]:
    """The configs of a sweep: every combination of the values named, the last override varying fastest.

    ``strategy=er,derpp 'seed=range(5)'`` gives 10. All are checked before any is run.
    """
    folder = make_importable(config_dir, allow)
    axes = [list(values(override, folder)) for override in parse(overrides, folder)]
    composed: dict[tuple[str, ...], Config] = {}
    jobs = []
    for job in itertools.product(*axes):
        key = tuple(text for text in job if not text.startswith("seed="))
        if key not in composed:
            composed[key] = compose(*job, config_dir=config_dir, allow=allow)
        jobs.append(_with_seed(composed[key], job, folder))
    return jobs


def _with_seed(config: Config, job: Sequence[str], folder: Path | None) -> Config:
    """``config`` with the last seed that ``job`` names: a composition costs much more than a seed."""
    seeds = [override.value() for override in parse([text for text in job if text.startswith("seed=")], folder)]
    return with_values(config, {"seed": seeds[-1]}) if seeds and seeds[-1] != config.resolved["seed"] else config


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with other values at dotted keys that it has: a composition costs much more."""
    cfg = OmegaConf.create(config.unresolved)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    own = replace(config, unresolved=_container(cfg, resolve=False), resolved=_container(cfg, resolve=True))
    _check_plain(own, None)
    if values.keys() - {"seed"}:
        check_calls({key: own.resolved[key] for key in _built(own)}, own.allow)
    return own


def build_stream(config: Config, sources: dict[str, Any] | None = None) -> Any:
    """The stream, operators applied in their order; a source is taken from ``sources``, by its config, or put there."""
    scenario: dict[str, Any] = config.resolved["scenario"]
    source = scenario.get("source")
    if sources is None or not isinstance(source, dict):
        parts = _instantiate({"scenario": scenario, "operator": config.resolved["operator"]})
        stream = parts["scenario"]
    else:
        key = json.dumps(source, sort_keys=True)
        sources[key] = sources[key] if key in sources else _instantiate({"source": source})["source"]
        own = {name: value for name, value in scenario.items() if name != "source"} | {"_partial_": True}
        parts = _instantiate({"scenario": own, "operator": config.resolved["operator"]})
        stream = parts["scenario"](source=sources[key])
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


def from_manifest(
    manifest: Mapping[str, Any],
    config_dir: str | Path | None = None,
    allow: Sequence[str] = (),
    device: str | None = None,
) -> Config:
    """The config a run was made with, fenced again: a run directory may come from somebody else."""
    make_importable(config_dir, allow)
    resolved = dict(manifest["resolved"])
    if device is not None:
        resolved |= {"device": device, "learner": _placed(resolved["learner"], device)}
    fence.check(resolved, allow)
    config = Config(resolved, resolved, dict(manifest["chosen"]), tuple(allow))
    check_calls({"learner": resolved["learner"]}, config.allow)
    return config


def admit(config: Config, config_dir: str | Path | None = None) -> None:
    """Check a config that comes from another process, and make importable what it names, as :func:`compose` does."""
    make_importable(config_dir, config.allow)
    fence.check(config.resolved, config.allow)
    check_calls({key: config.resolved[key] for key in _built(config)}, config.allow)


def make_importable(config_dir: str | Path | None, allow: Sequence[str]) -> Path | None:
    """Put the parent of ``config_dir``, and for allowed packages the working directory, on ``sys.path``."""
    folder = None if config_dir is None else Path(config_dir)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder; looked in {folder.absolute()}")
    homes = [folder.absolute().parent] if folder is not None else []
    for home in [*homes, *([Path.cwd()] if allow else [])]:
        if str(home) not in sys.path:
            sys.path.insert(0, str(home))
    return folder


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
        told = UserError(f"the config cannot be built: {str(error).splitlines()[0]} ({cause})")
        raise explained(error) or told from error


def _placed(learner: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The learner on another device, which need not be one that records updates."""
    own = {"device": device} | ({} if device.startswith("cuda") else {"cuda_graphs": False})
    return dict(learner) | {key: value for key, value in own.items() if key in learner}


def _compose(parsed: Sequence[Override], folder: Path | None) -> tuple[DictConfig, dict[str, str]]:
    search = ["~hydra/launcher"]  # no part of a run: see continual/launching.py
    search += [f"hydra.searchpath=['file://{folder.absolute()}']"] if folder else []
    lines = [str(override.input_line) for override in parsed]
    with initialize_config_dir(str(conf_directory().absolute()), version_base="1.3"):
        try:
            cfg = hydra_compose("config", overrides=[*search, *lines], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained(error, parsed, search, folder) from None
    chosen = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if not group.startswith("hydra")}
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return own, {group: str(choice) for group, choice in chosen.items() if choice is not None}


def _explained(error: Exception, parsed: Sequence[Override], search: Sequence[str], folder: Path | None) -> UserError:
    """Our own words for a key that does not exist: Hydra's suggest ``+``, which then dies in a constructor."""
    known = groups(folder)
    chosen = [str(override.input_line) for override in parsed if str(override.key_or_group) in known]
    unexplained = UserError(f"the config cannot be composed: {str(error).splitlines()[0]}")
    try:
        cfg = hydra_compose("config", overrides=[*search, *chosen])
    except (HydraException, OmegaConfBaseException):
        return unexplained
    return explain(parsed, _container(cfg, resolve=False), folder) or unexplained


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
    given = {_group(str(o.key_or_group)): str(o.input_line) for o in parsed if o.package is None}
    for group in sorted({_group(g) for g in groups()} - {"experiment", "memory"} - read):
        empty = config.unresolved.get(group) in ({}, None)
        if not empty and (group in given or group in ("strategy", *NONE_WHEN_EMPTY)):
            what = given.get(group, f"{group}={config.chosen.get(group)}")
            learner = config.chosen["learner"]
            raise UserError(f"learner={learner} takes no {group}, so {what} has no effect; leave it out")


def _check_switches_are_read(config: Config) -> None:
    """A switch of training that the learner does not know is a mistake."""
    for name, neutral in LATER.items():
        value = config.resolved["train"][name]
        if value != neutral and name not in config.unresolved["learner"]:
            learner, told = config.chosen["learner"], str(value).lower()
            raise UserError(f"learner={learner} takes no {name}, so train.{name}={told} has no effect; leave it out")


def _group(key: str) -> str:
    return key.split(".")[0].split("/")[0]


def _referenced(node: Any) -> set[str]:
    """Top-level keys that plain interpolations below ``node`` refer to."""
    if isinstance(node, Mapping):
        return set().union(*(_referenced(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*map(_referenced, node))
    return {node[2:-1].split(".")[0]} if isinstance(node, str) and node.startswith("${") else set()


def _check_plain(config: Config, folder: Path | None) -> None:
    """The keys that belong to no group."""
    own = {"seed", "train", "threads", "device", "output", "name"}
    known = own | {_group(g) for g in groups(folder)}
    for key in sorted(set(config.resolved) - known):
        raise UserError(f"{key} is a key that nothing reads{nearest(key, known)}")
    seed, threads, name = (config.resolved[key] for key in ("seed", "threads", "name"))
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed!r} must be an integer of at least 0; sweep several with -m 'seed=range(5)'")
    if threads != "auto" and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise UserError(f"threads={threads!r} must be an integer of at least 1, or auto")
    if name is not None and not NAME.fullmatch(str(name)):
        raise UserError(f"name={name!r} must be letters, digits and . _ + - only, as it names a folder")
    for key in ("output", "device"):
        if not isinstance(config.resolved[key], str) or not config.resolved[key]:
            raise UserError(f"{key}={config.resolved[key]!r} must be a string that is not empty")


def _built(config: Config) -> list[str]:
    """Keys whose targets are called; those that others refer to first, so that an error names the nearest path."""
    referred = _referenced({key: config.unresolved[key] for key in ALWAYS_READ})
    return [key for key in (*sorted(referred - ALWAYS_READ), *sorted(ALWAYS_READ)) if key in config.resolved]
