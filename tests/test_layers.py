"""Who may import whom, and what the library never does. Each check is a function of source text, tried on a bad one."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in ("continual", "scenarios")
    for path in sorted((ROOT / package).rglob("*.py"))
}

DOORS = {
    "hydra": ("continual/config.py", "continual/overrides.py"),
    "omegaconf": ("continual/config.py", "continual/overrides.py"),
    "wandb": ("continual/trackers/wandb", "continual/sync.py", "continual/workspace.py"),
    "wandb_workspaces": ("continual/workspace.py",),
    "avalanche": ("continual/bridges/",),
    "torchvision": ("scenarios/sources/",),
    "matplotlib": ("continual/report/",),
    "tensorboard": ("continual/trackers/tensorboard.py",),
    "mlflow": ("continual/trackers/mlflow.py",),
    "timm": (),
    "peft": ("continual/models/lora.py",),
    "optuna": ("continual/tuning/",),
    "joblib": ("continual/launchers/joblib.py",),
    "submitit": ("continual/launchers/submitit.py",),
    "ray": ("continual/launchers/ray.py",),
}
"""Third-party framework: the files, or folders, that may import it. Models of torchvision and timm come by config."""

BUILDS_FROM_CONFIG = (
    *DOORS["hydra"],
    "continual/experiment.py",
    "continual/sweep.py",
    "continual/worker.py",
    "continual/launching.py",
    "continual/launchers/",
    "continual/tuning/",
    "continual/progress.py",
    "continual/report/show.py",
    "continual/contract/",
    "continual/bridges/",
)
"""May load hydra when they are imported. All else runs without it."""

LAZY = (
    "wandb",
    "wandb_workspaces",
    "torchvision",
    "matplotlib",
    "sklearn",
    "scipy",
    "pyarrow",
    "PIL",
    "rich",
    "pandas",
    "tensorboard",
    "mlflow",
    "peft",
    "optuna",
    "joblib",
    "submitit",
    "ray",
)
"""Imported inside the function that needs them: each costs a tenth of a second or more."""

UNSAFE = {
    "torch.load": "runs code from the file",
    "torch.hub.load": "runs code from the network",
    "pickle.load": "runs code from the file",
    "pickle.loads": "runs code from the file",
    "pickle.Unpickler": "runs code from the file, unless a subclass restricts what it finds",
    "joblib.load": "runs code from the file",
    "eval": "runs text",
    "exec": "runs text",
    "os.system": "runs text",
}

GLOBAL_RANDOMNESS = (
    "torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.random.set_rng_state", "torch.random.manual_seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "numpy.random.seed", "random.seed",
)  # fmt: skip
MAY_TOUCH_GLOBAL_RANDOMNESS = {
    "continual/learner.py": "puts a dropout network's own generator in place for one step, and the old one back",
    "continual/bridges/avalanche.py": "Avalanche draws from it: its own state is put in place around each call",
    "continual/contract/tools.py": "shows that a part does not depend on it",
}
NUMPY_GENERATORS = ("SeedSequence", "default_rng", "Generator", "get_state", "seed", "set_state")

MAY_PASS_KEYWORDS_ON: dict[str, str] = {}
"""``file:function`` -> why it takes ``**anything: Any``."""

Check = Callable[[str, str], Iterator[str]]


# ---------------------------------------------------------------- the checks: (path, source) -> complaints


def one_door_each(path: str, source: str) -> Iterator[str]:
    for node, module, _ in imports(source):
        doors = DOORS.get(module.split(".")[0])
        if doors is not None and not any(path == door or path.startswith(door) for door in doors if door):
            yield f"{path}:{node.lineno} imports {module}; only {doors} may"


def heavy_imports_are_lazy(path: str, source: str) -> Iterator[str]:
    for node, module, lazy in imports(source):
        if module.split(".")[0] in LAZY and not lazy:
            yield f"{path}:{node.lineno} imports {module} at import"


def the_library_does_not_know_its_users(path: str, source: str) -> Iterator[str]:
    users = {"scripts", "tests"} | ({"scenarios"} if path.startswith("continual/") else set())
    for node, module, _ in imports(source):
        if module.split(".")[0] in users:
            yield f"{path}:{node.lineno} imports {module}"


def no_file_runs_code(path: str, source: str) -> Iterator[str]:
    names = aliases(source)
    for call in calls(source):
        name = dotted(call.func, names)
        if name in UNSAFE:
            yield f"{path}:{call.lineno} calls {name}, which {UNSAFE[name]}"
        if name == "numpy.load" and not says(call, "allow_pickle", False):
            yield f"{path}:{call.lineno} calls numpy.load without allow_pickle=False"
        if says(call, "shell", True):
            yield f"{path}:{call.lineno} calls a shell"


def no_global_randomness(path: str, source: str) -> Iterator[str]:
    names, forked = aliases(source), set(guarded_by(source, "torch.random.fork_rng"))
    allowed = path in MAY_TOUCH_GLOBAL_RANDOMNESS
    for call in calls(source):
        name = dotted(call.func, names)
        if name in GLOBAL_RANDOMNESS and call not in forked and not allowed:
            yield f"{path}:{call.lineno} calls {name}"
        numpy = name.removeprefix("numpy.random.")
        if numpy != name and (numpy not in NUMPY_GENERATORS or (numpy == "default_rng" and not call.args)):
            yield f"{path}:{call.lineno} draws from {name}"
    for node, module, _ in imports(source):
        if module == "random" and not allowed:
            yield f"{path}:{node.lineno} imports Python's random"


def no_keywords_are_passed_on(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(parsed(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.args.kwarg is None:
            continue
        annotation = node.args.kwarg.annotation
        untyped = annotation is None or ast.unparse(annotation) in ("Any", "object", "typing.Any")
        if untyped and f"{path}:{node.name}" not in MAY_PASS_KEYWORDS_ON:
            yield f"{path}:{node.lineno} {node.name}(**{node.args.kwarg.arg}) takes anything"


def no_state_in_modules(path: str, source: str) -> Iterator[str]:
    tree = parsed(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{path}:{node.lineno} changes the global {', '.join(node.names)}"
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        value = getattr(statement, "value", None)
        for target in targets:
            name = ast.unparse(target)
            mutable = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
            if mutable and name != "__all__" and name != name.upper():
                yield f"{path}:{statement.lineno} holds {name}, which can change; a constant is spelled in capitals"


CHECKS: dict[Check, list[tuple[str, str]]] = {
    one_door_each: [
        ("continual/learner.py", "from hydra.utils import instantiate"),
        ("continual/probe.py", "def f():\n    import wandb"),
        ("continual/report/plot.py", "import avalanche.training as t"),
        ("continual/models/library.py", "import torchvision"),
        ("continual/models/library.py", "def f():\n    import timm"),
    ],
    heavy_imports_are_lazy: [
        ("continual/track.py", "import wandb"),
        ("scenarios/sources/vision.py", "from torchvision.datasets import MNIST"),
        ("continual/statistics.py", "try:\n    import scipy.stats\nexcept ImportError:\n    pass"),
        ("continual/cli.py", "class A:\n    from rich.table import Table"),
    ],
    the_library_does_not_know_its_users: [
        ("continual/config.py", "from scenarios.split import split"),
        ("continual/cli.py", "def f():\n    import scripts.benchmark"),
        ("scenarios/split.py", "from tests.conftest import x"),
    ],
    no_file_runs_code: [
        ("continual/snapshot.py", "import torch\ntorch.load(path)"),
        ("continual/snapshot.py", "from torch import load\nload(path)"),
        ("scenarios/sources/cifar.py", "import pickle as p\np.loads(data)"),
        ("scenarios/sources/cifar.py", "import pickle\npickle.Unpickler(file).load()"),
        ("scenarios/sources/arrays.py", "import numpy as np\nnp.load(file, allow_pickle=True)"),
        ("scenarios/sources/arrays.py", "import numpy as np\nnp.load(file)"),
        ("continual/config.py", "eval(text)"),
        ("continual/manifest.py", "import subprocess\nsubprocess.run(text, shell=True)"),
    ],
    no_global_randomness: [
        ("continual/memory.py", "import torch\ntorch.manual_seed(0)"),
        ("continual/memory.py", "import torch\nwith torch.no_grad():\n    torch.manual_seed(0)"),
        ("continual/memory.py", "import torch\nwith torch.random.fork_rng():\n    pass\ntorch.manual_seed(0)"),
        ("continual/memory.py", "import numpy as np\nnp.random.seed(0)"),
        ("continual/memory.py", "import numpy as np\nnp.random.shuffle(x)"),
        ("continual/memory.py", "import numpy as np\nnp.random.default_rng()"),
        ("continual/memory.py", "from random import choice"),
    ],
    no_keywords_are_passed_on: [
        ("continual/memory.py", "def f(x: int, **kwargs: Any) -> None: ..."),
        ("continual/memory.py", "class A:\n    def f(self, **options): ..."),
    ],
    no_state_in_modules: [
        ("continual/memory.py", "def f():\n    global counter\n    counter = 1"),
        ("continual/memory.py", "cache = {}"),
        ("continual/memory.py", "_seen: list[int] = []"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_library(check: Check) -> None:
    assert len(SOURCES) > 50
    assert [complaint for path, source in SOURCES.items() for complaint in check(path, source)] == []


@pytest.mark.parametrize(
    ("check", "path", "source"), [(check, *bad) for check, cases in CHECKS.items() for bad in cases]
)
def test_a_check_complains_about_what_it_forbids(check: Check, path: str, source: str) -> None:
    assert len(list(check(path, source))) == 1


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (one_door_each, "continual/trackers/wandb_mode.py", "def f():\n    import wandb"),
        (one_door_each, "continual/bridges/deep/file.py", "import avalanche"),
        (heavy_imports_are_lazy, "a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wandb"),
        (no_file_runs_code, "a.py", "import pickle\nclass A(pickle.Unpickler): ..."),
        (no_file_runs_code, "a.py", "import safetensors.torch\nsafetensors.torch.load(data)"),
        (no_file_runs_code, "a.py", "import numpy as np\nnp.load(file, allow_pickle=False)"),
        (no_global_randomness, "a.py", "import torch\nwith torch.random.fork_rng([]):\n    torch.manual_seed(0)"),
        (no_global_randomness, "a.py", "import torch\ntorch.Generator().manual_seed(0)"),
        (no_global_randomness, "a.py", "import numpy as np\nnp.random.default_rng(3)"),
        (no_keywords_are_passed_on, "a.py", "def f(**columns: Tensor) -> None: ..."),
        (no_state_in_modules, "a.py", "TABLE = {1: 2}\n__all__ = ['f']\nnames = ('a', 'b')"),
    ],
)
def test_a_check_lets_the_rest_pass(check: Check, path: str, source: str) -> None:
    assert list(check(path, source)) == []


def test_every_exception_is_still_needed() -> None:
    assert set(MAY_TOUCH_GLOBAL_RANDOMNESS) <= set(SOURCES)
    for path in MAY_TOUCH_GLOBAL_RANDOMNESS:
        assert list(no_global_randomness("elsewhere.py", SOURCES[path])), path


# ---------------------------------------------------------------- what importing really loads


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that ``statement`` loads into a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"torch", "numpy", "hydra", "omegaconf", "avalanche", "safetensors", *LAZY}


@pytest.mark.parametrize("module", ["continual", "continual.cli", "continual.errors"])
def test_the_front_door_opens_without_anything_heavy(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_only_what_builds_from_config_loads_a_framework() -> None:
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in SOURCES
        if not path.startswith(BUILDS_FROM_CONFIG) and not path.endswith("__main__.py")  # that one runs and exits
    ]
    assert {"continual.learner", "continual.track", "scenarios.sources.vision"} <= set(modules)
    loaded = loaded_by(f"import {', '.join(modules)}")
    assert "continual" in loaded
    assert loaded & {"hydra", "omegaconf", "avalanche", "timm", *LAZY} == set()


# ---------------------------------------------------------------- reading source


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(source: str) -> Iterator[tuple[ast.stmt, str, bool]]:
    """(statement, full module name, whether it waits until a function runs or is for type checkers only)."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.stmt, str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module, lazy
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        inside = lazy or typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(parsed(source), lazy=False)


def aliases(source: str) -> dict[str, str]:
    """Local name -> full name, for everything imported anywhere in the file."""
    names: dict[str, str] = {}
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call))


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``torch.load`` for the expression ``torch.load``, imported under whatever name; empty if it is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    given = [k.value for k in call.keywords if k.arg == keyword]
    return bool(given) and isinstance(given[0], ast.Constant) and given[0].value is value


def guarded_by(source: str, context: str) -> Iterator[ast.Call]:
    """Calls inside a ``with context(...):`` block."""
    names = aliases(source)
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func, names) == context
            for item in node.items
        ):
            yield from (
                inner for statement in node.body for inner in ast.walk(statement) if isinstance(inner, ast.Call)
            )
