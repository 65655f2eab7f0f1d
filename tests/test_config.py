"""Composing, fencing and checking a config."""

import collections.abc as abc
import json
import types
import typing
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from continual import choices, config, fence, overrides, signatures
from continual.config import compose, expand
from continual.errors import UserError

YAMLS = {
    path.relative_to(choices.conf_directory()).as_posix(): path for path in choices.conf_directory().rglob("*.yaml")
}


def targets(node):
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "_target_"] + targets(list(node.values()))
    return [t for value in node for t in targets(value)] if isinstance(node, list) else []


# Compose


def test_the_last_word_on_a_key_counts_and_the_config_remembers_how_it_was_written():
    made = compose("seed=3", "strategy=er", "train.epochs=2", "train.epochs=4")
    assert made.resolved["train"]["epochs"] == made.resolved["learner"]["epochs"] == 4
    assert made.unresolved["learner"]["epochs"] == "${train.epochs}"
    assert made.resolved["strategy"]["er"]["seed"] == made.resolved["seed"] == 3
    assert made.chosen["strategy"] == "er"


@pytest.mark.parametrize(
    ("words", "scenario", "name"),
    [
        ((), "split-digits", "none"),
        (("strategy=[er,ewc]", "operator=[noise,imbalance]"), "split-digits+noise+imbalance", "er+ewc"),
        (("strategy=[]", "operator=[]"), "split-digits", "none"),
        (("learner=slda", "scenario=prequential"), "prequential-digits", "slda"),
        (("strategy=er", "name=mine"), "split-digits", "mine"),
    ],
)
def test_names(words, scenario, name):
    made = compose(*words)
    assert (made.scenario, made.name) == (scenario, name)
    assert made.directory == Path("runs", scenario, name, f"seed0-{made.hash}")


def test_the_hash_follows_what_decides_the_results_and_nothing_else():
    plain = compose().hash
    assert {compose(word).hash for word in ("track=none", "device=auto", "output=elsewhere", "name=x")} == {plain}
    other = [compose(word).hash for word in ("seed=1", "threads=2", "train.epochs=2", "strategy=er", "probe.every=5")]
    assert len({plain, *other}) == 6


def test_operators_act_in_the_order_listed():
    assert list(compose("operator=[noise,imbalance]").resolved["operator"]) == ["noise", "imbalance"]
    assert list(compose("operator=[imbalance,noise]").resolved["operator"]) == ["imbalance", "noise"]


def test_a_users_folder_adds_choices(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    folder = tmp_path / "my" / "conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "wide.yaml").write_text(
        "# wide\n_target_: continual.models.mlp\n_partial_: true\nhidden: [9]\n"
    )
    assert compose("model=wide", config_dir=folder).resolved["model"]["hidden"] == [9]
    assert choices.Choice("wide", "wide") in choices.choices("model", folder)
    with pytest.raises(UserError, match="model=wide does not exist"):
        compose("model=wide")


# Sweeps


def test_a_sweep_is_every_combination_and_the_last_varies_fastest():
    words = ["strategy=none,er", "train.epochs=1,2", "seed=range(2)"]
    made = expand(words)
    expected = [
        compose(f"strategy={strategy}", f"train.epochs={epochs}", f"seed={seed}")
        for strategy in ("none", "er")
        for epochs in (1, 2)
        for seed in (0, 1)
    ]
    assert made == expected


@pytest.mark.parametrize(
    ("words", "n"),
    [((), 1), (("seed=4",), 1), (("strategy=glob(er*)", "seed=1,2"), 4), (("strategy=er,[],[er,lwf]",), 3)],
)
def test_sweeps_of_other_forms(words, n):
    assert len(expand(words)) == n


def test_a_sweep_checks_each_seed():
    with pytest.raises(UserError, match="seed=-1 must be"):
        expand(["seed=0,-1"])


# Explanations


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("strategi", "strategy"),
        ("lr", "optimizer.lr"),
        ("strategy.er.capcity", "strategy.er.memory.capacity"),
        ("learner.epoch", "learner.epochs"),
        ("lerner.epochs", "learner.epochs"),
        ("zzz", None),
    ],
)
def test_the_nearest_key(key, closest):
    keys = [
        "strategy",
        "optimizer.lr",
        "strategy.er.memory.capacity",
        "learner.epochs",
        "learner.strategies",
        "train.epochs",
    ]
    assert overrides._closest(key, keys) == closest


def test_a_key_that_is_there_needs_no_explanation():
    parsed = overrides.parse(["seed=1", "optimizer.lr=3", "model._target_=x", "+optimizer.nesterov=true"], None)
    assert overrides.explain(parsed, compose().unresolved, None) is None


# The fence


OUTSIDE = {"scenario/avalanche.yaml": "avalanche.benchmarks"}
"""What calls something that may download, and says on its first line that it must be allowed."""


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_is_inside_the_fence(name):
    written = yaml.safe_load(YAMLS[name].read_text())
    if name in OUTSIDE:
        with pytest.raises(UserError, match="--allow avalanche"):
            fence.check(written)
    fence.check(written, [OUTSIDE[name]] if name in OUTSIDE else [])
    for target in targets(written):
        if target.startswith(("continual.", "scenarios.", "torch.")) and "avalanche" not in target:  # seconds to import
            assert callable(fence.locate(target))


@given(st.lists(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), min_size=1, max_size=5).map(".".join))
def test_whatever_is_not_listed_is_outside(target):
    assume(not target.startswith(tuple(fence.ALLOWED)))
    with pytest.raises(UserError):
        fence.check({"model": {"_target_": target}})


@pytest.mark.parametrize(
    "target",
    [
        "continualx.models.mlp",
        "torch.nnx.Linear",
        "torch.load",
        "timm.create_model.x",
        "timm.create_modelx",
        "continual.cli.main",
        "continual.config.compose",
        "continual.experiment.run",
        "continual.files.write_atomic",
        "continual.manifest.commit",
        "continual.models._mlp",
        "continual.models.mlp.__globals__.get",
        "torch.nn.Linear.__init__",
        "torch.nn.${seed}",
        "torch/nn.Linear",
        " torch.nn.Linear",
        7,
        None,
        ["torch.nn.Linear"],
    ],
)
def test_outside_the_fence(target):
    with pytest.raises(UserError, match="_target_"):
        fence.check({"a": [{"b": {"_target_": target}}]})


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("torch.nn.modules.module.warnings.warn", "there is no 'warnings' to call"),
        ("continual.learner.deepcopy", "is really copy.deepcopy"),
        ("continual.learner.KINDS", "there is no 'KINDS'"),
        ("continual.heads.KINDS", "cannot be called"),
        ("continual.models.mpl", "did you mean 'mlp'?"),
        ("absent_package.Thing", "there is no module 'absent_package'"),
    ],
)
def test_a_name_inside_that_leads_nowhere_or_out(target, told):
    with pytest.raises(UserError, match=told.replace("?", r"\?")):
        fence.locate(target, allow=["absent_package"])


def test_a_package_is_allowed_on_the_command_line_only(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "allowed_here.py").write_text("import os\ndef thing(): ...\n")
    node = {"_target_": "allowed_here.thing"}
    with pytest.raises(UserError, match="--allow allowed_here"):
        fence.check(node)
    fence.check(node, allow=["allowed_here"])
    assert fence.locate("allowed_here.thing", allow=["allowed_here"]).__name__ == "thing"
    with pytest.raises(UserError, match="there is no 'os' to call"):
        fence.locate("allowed_here.os.system", allow=["allowed_here"])
    with pytest.raises(UserError, match="outside the fence"):
        fence.check({"_target_": "allowed_here_too.thing"}, allow=["allowed_here"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "x.pth"},
        {"_args_": ["x", False]},
        {"pretrained_cfg": {}},
        {"model_name": "hf-hub:somebody/x"},
        {"model_name": "${output}"},
    ],
)
def test_arguments_that_would_open_a_pickle(arguments):
    call = {"_target_": "timm.create_model", "model_name": "resnet10t", "pretrained": True}
    fence.check({"model": {"network": call}})
    with pytest.raises(UserError, match=r"model\.network\.\w+.* is refused"):
        fence.check({"model": {"network": call | arguments}})


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a${oc.decode:x}b", "${a.${b}}", "${hydra:runtime.cwd}", "${a:b}"])
def test_interpolations_that_run_code_or_read_secrets(value):
    with pytest.raises(UserError, match="only plain references"):
        fence.check({"x": [value]})


def test_plain_references_pass():
    fence.check({"x": "${seed}", "y": ["${train.epochs}", "no reference"], "z": 1.5})


def test_a_broken_module_of_the_users_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_here.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"broken_here.Thing cannot be imported: ZeroDivisionError: division by zero"):
        fence.locate("broken_here.Thing", allow=["broken_here"])


def test_the_config_of_a_run_directory_is_fenced_again():
    made = compose()
    manifest = {"resolved": json.loads(json.dumps(made.resolved)), "chosen": made.chosen}
    assert config.from_manifest(manifest).resolved == made.resolved
    manifest["resolved"]["learner"]["model"]["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"learner.model._target_=os.system is outside the fence"):
        config.from_manifest(manifest)


# Types


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [3, -1], [3.0, "3", True, None, [3], {"a": 1}]),
        (float, [3, 0.5, float("inf")], ["3", True, None, float("nan")]),
        (bool, [True], [1, "true", None]),
        (str, ["x", ""], [1, None, ["x"]]),
        (int | None, [3, None], ["none", 0.5]),
        (typing.Optional[float], [3, None], ["x"]),  # noqa: UP045 written so by others
        (float | torch.Tensor, [0.1, 1], ["x", None]),
        (abc.Sequence[int], [[1, 2], []], [1, "12", [1, "a"], None]),
        (abc.Sequence[int] | None, [[1], None], [1]),
        (tuple[float, float], [[1, 2.5]], [["a", 1], 3]),
        (int | abc.Sequence[int], [3, [3, 4]], ["x", ["x"]]),
        (abc.Callable[..., int], [{"_target_": "x"}], [3, "x", None]),
        (abc.Mapping[str, int], [{"a": 1}], [3, "x"]),
        (typing.Literal["a", "b"], ["a"], ["c", 1]),
        (typing.Any, [1, "x", None, [1]], []),
        (object, [1, "x", None, [1]], []),
        (Path, ["x"], []),  # a class that we cannot judge
    ],
)
def test_which_values_fit_a_hint(hint, good, bad):
    assert [value for value in good if not signatures._fits(value, hint)] == []
    assert [value for value in bad if signatures._fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (int | None, "an integer or null"),
        (typing.Union[float, torch.Tensor], "a number"),  # noqa: UP007 written so by others
        (abc.Sequence[str], "a list, each item text"),
        (abc.Sequence[object], "a list"),
        (abc.Callable[..., int], "an object of its own (with a _target_)"),
        (typing.Literal["a", "b"], "one of a, b"),
        (Path, "Path"),
    ],
)
def test_hints_in_words(hint, told):
    assert signatures._told(hint) == told


def test_a_key_is_checked_where_it_is_nearest_to_what_was_written():
    with pytest.raises(UserError, match=r"^strategy.ewc.strength=abc must be a number$"):
        compose("strategy=ewc", "strategy.ewc.strength=abc")


def test_calls_without_a_signature_or_with_free_keys_pass(monkeypatch):
    def free(**anything): ...

    monkeypatch.setattr(signatures.fence, "locate", lambda target, allow: {"free": free, "builtin": min}[target])
    signatures.check_calls({"_target_": "free", "x": 1}, ())
    signatures.check_calls({"_target_": "builtin", "x": 1}, ())


def test_the_config_module_imports_no_torch():
    assert not any(isinstance(value, types.ModuleType) and value.__name__ == "torch" for value in vars(config).values())
