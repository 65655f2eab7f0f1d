"""The laws, applied to every YAML under conf/: add a file, and it is bound."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import chain, combinations, repeat, zip_longest
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from continual import config as configs
from continual.choices import choices, conf_directory, groups
from continual.contract import LEARNER_LAWS, NATIVE_LAWS, STRATEGY_LAWS, STREAM_LAWS, Subject
from continual.contract.learners import seed_decides_everything
from continual.contract.native import every, resume_is_exact
from continual.errors import UserError
from continual.types import Stream

Case = tuple[str, ...]
"""Overrides of the command line."""

BLOBS: Case = (
    "scenario/source=gaussian",
    "scenario.source.n_classes=6",
    "scenario.source.rows_per_class=12",
    "scenario.n_tasks=3",
)
DIGITS: Case = ("scenario.rows_per_task=14",)
MOODY: Case = ("model._target_=continual.contract.tools.moody", "model.hidden=[16]")
QUIET: Case = ("track=none",)
PERCEPTRON = {"_target_": "continual.models.mlp", "_partial_": True, "hidden": [16]}

# A law that something breaks by definition stands here, beside its subject, and must go on being broken. Those that
# learners of Avalanche break stand in their YAMLs.
EXCEPTIONS = {
    ("learner=joint", "memory_is_bounded"): "the upper bound keeps every row, by definition, and its bytes say so",
    ("learner=cumulative", "memory_is_bounded"): "an upper bound keeps every row, by definition, and its bytes say so",
    ("learner=last_label", "it_learns"): "it never looks at a row, only at the label before it",
    ("er_ace with n_replay=0", "neutral_element"): "with nothing replayed its mask still acts, as its docstring says",
    ("cls_er with strength=0", "neutral_element"): "what is left is replay, and the stable average's answers",
    ("cls_er with n_replay=0", "neutral_element"): "with nothing replayed the stable average still answers",
    ("ema_teacher with strength=0", "neutral_element"): "the teacher answers, too; answers=false switches that off",
    ("rar with n_replay=0", "neutral_element"): "with nothing replayed it still repeats its steps, which is its point",
    ("rar with strength=0", "neutral_element"): "with nothing replayed it still repeats its steps, which is its point",
    ("icarl with n_replay=0", "neutral_element"): "with nothing replayed its loss and its answers are still its own",
    ("scr with n_replay=0", "neutral_element"): "with nothing replayed its loss and its answers are still its own",
}


def choice_text(group: str, name: str) -> str:
    return (conf_directory() / group / f"{name}.yaml").read_text(encoding="utf-8")


def broken_by_learners() -> dict[tuple[str, str], str]:
    """What a learner's YAML says itself, below its first line: ``# breaks <law>: <reason>``."""
    found = {}
    for name in named("learner"):
        for law, reason in re.findall(r"^# breaks (\w+): (.+)$", choice_text("learner", name), flags=re.MULTILINE):
            found[f"learner={name}", law] = reason
    return found


def of_learner(name: str) -> Case:
    return (f"learner={name}", *(MOODY if "${model}" in choice_text("learner", name) else ()), *BLOBS)


# What the choices of each group are put into, and what makes some of them small enough.
LEARNED: dict[str, Callable[[str], Case]] = {
    "strategy": lambda name: (f"strategy={name}", "train.epochs=2", *MOODY, *BLOBS),
    "learner": of_learner,
    "model": lambda name: (f"model={name}", *DIGITS),
    "augment": lambda name: (f"augment={name}", "strategy=er", *MOODY, *DIGITS),
}
TOGETHER = ("optimizer", "scheduler", "clip", "memory@strategy.er.memory")
"""Groups whose choices do not meet: the n-th ones of all of them are one case."""

PLAIN: Case = ("model._target_=continual.models.mlp",)
SMALL: dict[str, Case] = {
    "strategy=redo": (*PLAIN, "strategy.redo.every=2", "strategy.redo.threshold=0.5"),
    "strategy=continual_backprop": (
        *PLAIN,
        "strategy.continual_backprop.rate=0.1",
        "strategy.continual_backprop.maturity=3",
    ),
    "strategy=packnet": ("scenario.kind=task", "train.head=per_task"),
    "strategy=rwalk": ("strategy.rwalk.window=3",),
    "model=slim_resnet18": ("model.width=2",),
    "model=torchvision": (
        "model.network._target_=torchvision.models.DenseNet",
        "+model.network.growth_rate=4",
        "+model.network.block_config=[1,1]",
        "+model.network.num_init_features=8",
    ),
    "augment=crop_flip": ("augment.crop=1",),
    **{f"learner={name}": ("learner.batch_size=10",) for name in ("slda", "ncm")},
    "memory@strategy.er.memory=herding": ("strategy.er.remember=end",),
    "learner=ranpac": ("learner.batch_size=10", "learner.n_features=50"),
    "learner=avalanche/bic": ("learner.strategy.mem_size=40", "learner.strategy.stage_2_epochs=5"),
    "learner=avalanche/bic_plugin": (
        "learner.strategy.plugins=[{_target_:avalanche.training.plugins.BiCPlugin,_partial_:true,mem_size:40}]",
    ),
    "learner=avalanche/mer": ("learner.strategy.n_inner_steps=1",),
    **{
        f"learner=avalanche/{name}": ("train.batch_size=30", "scenario.source.rows_per_class=40")
        for name in ("gss_greedy", "gss_greedy_plugin")  # it needs more rows in its memory than in a batch
    },
    "learner=avalanche/multi_head": ("scenario.kind=task",),
    "learner=avalanche/pnn": ("scenario.kind=task",),
    "learner=avalanche/packnet": ("model._target_=continual.models.mlp", "scenario.kind=task", "train.epochs=2"),
    "learner=avalanche/joint_training": ("scenario.n_tasks=1",),
    "learner=avalanche/rar": ("model._target_=continual.models.mlp",),
}
LWF_BY_TASK: Case = ("strategy.lwf.softmax=per_task", "strategy.lwf.weighting=tasks")
STACKS: list[Case] = [
    ("strategy=[er_ace,ewc]", "strategy.ewc.labels=model", "train.head=seen", *MOODY, *BLOBS),
    ("strategy=er", "strategy.er.memory.store=indices", "strategy.er.memory.replacement=true", *MOODY, *BLOBS),
    ("strategy=er", "strategy.er.exclude_current=true", "train.head=current", *MOODY, *BLOBS),
    ("strategy=er", "strategy.er.remember=end", "strategy.er.weighting=tasks", *MOODY, *BLOBS),
    ("strategy=[lwf,er]", "scenario.kind=task", "train.head=per_task", *LWF_BY_TASK, *MOODY, *BLOBS),
    ("strategy=[er,ema_teacher]", "strategy.ema_teacher.strength=0.5", "train.head=growing", *MOODY, *BLOBS),
    ("strategy=[er_ace,gce]", "train.head=seen", "operator=noise", *MOODY, *BLOBS),
    ("strategy=[derpp,small_loss,teacher_weight]", "scenario.arrival_rows=9", "train.iterations=2", *MOODY, *BLOBS),
    ("strategy=[er,derpp]", "scenario.arrival_rows=9", "train.iterations=2", *MOODY, *BLOBS),
    ("strategy=er", "operator=[noise,delay]", "scenario.arrival_rows=9", "operator.delay.rows=12", *MOODY, *BLOBS),
    ("strategy=er", "optimizer.momentum=0.9", "scheduler=step", "scheduler.step_size=3", *MOODY, *BLOBS),
    ("learner=slda", "learner.n_features=16", "learner.batch_size=10", "learner.target=mean_variance", *BLOBS),
    (
        "learner=ncm",
        "model@learner.backbone=mlp",
        *(word.replace("model.", "learner.backbone.") for word in MOODY),
        *BLOBS,
    ),
    ("learner=buffer_knn", "model@learner.backbone=mlp", "memory@learner.memory=fifo", "learner.k=3", *BLOBS),
    ("learner=gdumb", "learner.memory.store=indices", *MOODY, *BLOBS),
    ("learner=ranpac", "learner.ridge=1", "scenario.kind=task", "train.head=per_task", *BLOBS),
    ("strategy=[er,ewc]", "train.head=growing", "optimizer.momentum=0.9", *MOODY, *BLOBS),
    ("strategy=[si,mas,rwalk]", "train.head=growing", "optimizer.momentum=0.9", *MOODY, *BLOBS),
    (
        "strategy=[l2_init,shrink_perturb]",
        "strategy.shrink_perturb.every=2",
        "strategy.shrink_perturb.shrink=0.95",
        "scenario.arrival_rows=9",
        *MOODY,
        *BLOBS,
    ),
    ("strategy=derpp", "train.head=growing", "scenario.arrival_rows=9", *MOODY, *BLOBS),
    (
        "strategy=redo",
        "train.head=growing",
        "optimizer=adam",
        "model.hidden=[9,7]",
        "strategy.redo.every=2",
        "strategy.redo.threshold=0.5",
        *BLOBS,
    ),
    (
        "strategy=[er,continual_backprop]",
        "optimizer=upgd",
        "optimizer.lr=0.2",
        "scheduler.gamma=0.99",
        "model.hidden=[9,7]",
        "scheduler=step",
        "scheduler.step_size=3",
        "strategy.continual_backprop.rate=0.1",
        "strategy.continual_backprop.maturity=3",
        *BLOBS,
    ),
    ("strategy=lwf", "train.head=multi_head", "scenario.kind=task", *MOODY, *BLOBS),
    ("strategy=ewc", "train.head=multi_head", "scenario=permuted", "scenario.task_aware=true", *MOODY, *DIGITS),
]
PAIRED = ("er", "derpp", "ewc", "si", "lwf", "l2_init", "ema_teacher", "gce")
"""Every two of these are a stack."""
STACKS += [(f"strategy=[{one},{other}]", *MOODY, *BLOBS) for one, other in combinations(PAIRED, 2)]


def learner_cases() -> list[Case]:
    """Every choice that decides something about a learner, and the stacks."""
    apart = [case(name) for group, case in LEARNED.items() for name in named(group)]
    rows = zip_longest(*([f"{group}={name}" for name in named(group)] for group in TOGETHER))
    together = [("strategy=er", *(word for word in row if word), *MOODY, *BLOBS) for row in rows]
    return [(*case, *small(case), *QUIET) for case in apart + together + STACKS]


def small(case: Case) -> Case:
    return tuple(setting for word in case for setting in SMALL.get(word, ()))


def named(group: str) -> list[str]:
    """The choices of a group; those called none are what every other case has."""
    found = [choice.name for choice in choices(group.partition("@")[0])]
    return [name for name in found if name != "none" or group == "strategy"]


def told(case: Case) -> str:
    """The id of a case: what is special about it."""
    usual = {"train.epochs=2", *MOODY, *BLOBS, *DIGITS, *QUIET, *small(case)}
    return ",".join(word for word in case if word not in usual)


@cache
def subject(case: Case) -> Subject:
    for choice, package in {"model=timm": "timm", "model=lora": "peft"}.items():
        if choice in case and find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it is an extra")
    config = configs.compose(*case, allow=["continual.contract"])
    return Subject(config, experiences=2 if case[0].startswith("model=") else 3)


def excused(*key: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(strict=True, reason=EXCEPTIONS[key], raises=AssertionError)] if key in EXCEPTIONS else []


EXCEPTIONS |= broken_by_learners()


def test_every_exception_names_a_law() -> None:
    laws = {law.__name__ for law in (*LEARNER_LAWS, *NATIVE_LAWS, *(law for law, _ in STRATEGY_LAWS))}
    assert {law for _, law in EXCEPTIONS} <= laws
    assert len(broken_by_learners()) >= 8


def has_strategy(case: Case) -> bool:
    return case[0].startswith("strategy=") and case[0] != "strategy=none"


def is_native(case: Case) -> bool:
    return not case[0].startswith("learner=avalanche/")


def is_twin(case: Case) -> bool:
    """A plug-in on plain training that is what a strategy of Avalanche is made of (``test_bridge``)."""
    return case[0].endswith("_plugin") and case[0].removesuffix("_plugin").removeprefix("learner=") in named("learner")


def bound_learners() -> list[Any]:
    """(case, law) for each law that binds a case."""
    return [
        pytest.param(
            case,
            law,
            id=f"{told(case)}-{law.__name__}",
            marks=excused(case[0], law.__name__) + [pytest.mark.long] * is_twin(case),
        )
        for case in learner_cases()
        for law in (LEARNER_LAWS + NATIVE_LAWS if is_native(case) else LEARNER_LAWS)
    ]


@pytest.mark.parametrize(("case", "law"), bound_learners())
def test_learner(case: Case, law: Any) -> None:
    subject(case).apply(law)


@pytest.mark.parametrize("case", [case for case in learner_cases() if has_strategy(case)], ids=told)
def test_strategies_keep_off_the_global_generator(case: Case) -> None:
    """Without dropout: a network that has it gets a global generator of its own for each step."""
    subject(case).changed({"model": PERCEPTRON}).apply(seed_decides_everything)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in learner_cases() if is_native(case)], ids=told)
def test_resume_is_exact_from_every_update(case: Case) -> None:
    one = subject(case)
    resume_is_exact(one.make_learner, one.make_stream, stops=every)


def bound_strategies() -> list[Any]:
    """(case, strategy, law, setting) for every strategy with a strength or with replay, alone and in stacks."""
    params = []
    for case in learner_cases():
        found = re.match(r"strategy=\[?(.*?)]?$", case[0])
        for name in found[1].split(",") if found else ():
            node = yaml.safe_load(choice_text("strategy", name)).get(name, {})
            for law, settings in STRATEGY_LAWS:
                for setting in settings(node):
                    switched = f"{name} with {', '.join(f'{key}={value:g}' for key, value in setting.items())}"
                    marks = excused(switched, law.__name__)
                    name_of_test = f"{told(case)}-{switched}-{law.__name__}"
                    params.append(pytest.param(case, name, law, setting, id=name_of_test, marks=marks))
    return params


@pytest.mark.parametrize(("case", "name", "law", "setting"), bound_strategies())
def test_strategy(case: Case, name: str, law: Any, setting: dict[str, float]) -> None:
    one = subject(case)
    law(one.switched(name, setting), one.without(name), one.make_stream)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator")
@pytest.mark.parametrize(("case", "name", "law", "setting"), bound_strategies())
def test_strategy_on_an_accelerator(case: Case, name: str, law: Any, setting: dict[str, float]) -> None:
    one = subject(case).changed({"device": str(torch.accelerator.current_accelerator())})
    law(one.switched(name, setting), one.without(name), one.make_stream)


# Streams: few rows and tasks of every scenario, every source dealt out, every operator around an online stream.
FEW = {"rows_per_task": 20, "max_rows": 40, "n_tasks": 5}
ONLINE: Case = ("scenario.arrival_rows=7", *BLOBS)
DELAYED: dict[str, Case] = {"delay": ("operator.delay.rows=9",)}
STREAM_STACKS: list[Case] = [
    ("scenario.kind=task", *ONLINE),
    ("scenario.arrival_rows=1", *BLOBS),
    ("scenario=permuted", "scenario.task_aware=true", "scenario.arrival_rows=7"),
    ("scenario=rotated", "operator=[imbalance,noise,repeat]"),
    ("operator=[imbalance,repeat,blur,drift,missing,noise,delay]", "operator.delay.rows=9", *ONLINE),
    ("operator=[noise,missing]", *BLOBS),
    ("operator=drift", "operator.drift.kind=gradual", *ONLINE),
    ("operator=drift", "operator.drift.kind=recurring", *ONLINE),
]


def stream_cases() -> list[Case]:
    read = " ".join(choice_text("scenario", name) for name in named("scenario"))
    sources = [name for name in named("scenario/source") if not re.search(rf"source: {name}\b", read)]
    scenarios = [(f"scenario={name}",) for name in named("scenario")]
    dealt = [(f"scenario/source={name}", "scenario.n_tasks=2") for name in sources]
    operators = [(f"operator={name}", *DELAYED.get(name, ()), *ONLINE) for name in named("operator")]
    return [(*case, *QUIET) for case in (*scenarios, *dealt, *operators, *STREAM_STACKS)]


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """What the sources of a user's own data need."""
    folder = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(40, 3)), np.arange(40) % 2
    np.savez(folder / "rows.npz", x=x, y=y)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["a", "b", "c", "label"], *([*row, label] for row, label in zip(x, y, strict=True))]
        )
    for row in range(40):
        path = folder / ("images" if row < 20 else "unseen") / str(row % 2) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (4, 4, 3), np.uint8)).save(path)
    images = f"{{_target_: torchvision.datasets.ImageFolder, root: {folder}/images}}"
    return {
        "npz": (f"scenario.source.path={folder}/rows.npz",),
        "table": (f"scenario.source.path={folder}/rows.csv", "scenario.source.label=label"),
        "image_folder": (f"scenario.source.root={folder}/images", "scenario.source.size=4"),
        "scenario=avalanche": of_images(f"{folder}/images", f"{folder}/unseen"),
        "dataset": (f"scenario.source.train={images}",),
    }


def of_images(train: str, test: str) -> Case:
    """Settings that make a benchmark of Avalanche out of two image folders."""
    images = (
        "{{_target_:torchvision.datasets.ImageFolder,root:'{}',transform:{{_target_:torchvision.transforms.ToTensor}}}}"
    )
    return (
        "scenario.benchmark._target_=avalanche.benchmarks.nc_benchmark",
        "scenario.benchmark.n_experiences=2",
        "+scenario.benchmark.task_labels=false",
        f"+scenario.benchmark.train_dataset={images.format(train)}",
        f"+scenario.benchmark.test_dataset={images.format(test)}",
    )


@cache
def stream_maker(case: Case) -> Callable[[], Stream]:
    """How to build the stream of a case anew, few rows of it."""
    config = configs.compose(*case, allow=["torchvision", "avalanche.benchmarks"])
    node = config.resolved["scenario"]
    few = {key: min(node[key] or most, most) for key, most in FEW.items() if key in node}
    small = replace(config, resolved={**config.resolved, "scenario": {**node, **few}})
    return lambda: configs.build_stream(small)


@cache
def built(case: Case) -> Stream:
    try:
        return stream_maker(case)()
    except UserError as error:
        if "CONTINUAL_DATA" not in str(error):
            raise
        pytest.skip(f"needs data that is not here: {error}")


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", stream_cases(), ids=told)
def test_stream(case: Case, law: Any, own_data: dict[str, Case]) -> None:
    case = case + own_data.get(case[0].removeprefix("scenario/source="), ())
    makers = chain([lambda: built(case)], repeat(stream_maker(case)))  # the first one is shared by the laws
    law(lambda: next(makers)())


def test_every_group_is_bound() -> None:
    """A new group of configs says here which laws bind it."""
    bound = {"scenario", "scenario/source", "operator", *(group.partition("@")[0] for group in TOGETHER)}
    unbound = {
        "probe",
        "snapshot",
        "track",
        "experiment",
    }  # evaluation_changes_nothing binds probes; see test_resume.py
    assert {group.split("/avalanche")[0] for group in groups()} == {*LEARNED, *bound, *unbound}


@pytest.mark.parametrize("name", [choice.name for choice in choices("experiment")])
def test_every_experiment_can_be_composed(name: str) -> None:
    assert configs.compose(f"experiment={name}", *QUIET).resolved["learner"]["_target_"]
