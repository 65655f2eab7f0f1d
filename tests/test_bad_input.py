"""What users get wrong: one line that names the thing, the value and the bound; no training, and nothing written."""

import re
import sys

import numpy as np
import pytest
import torch

import continual
from continual import config as configs
from continual import devices, files
from continual.errors import UserError

SMALL = ("scenario/source=gaussian", "scenario.n_tasks=2", "track=none")
CONFIG = {
    # misspelt keys and choices
    "strategi=er": "there is no key 'strategi'; did you mean 'strategy'?",
    "strategy=erx": "strategy=erx does not exist; did you mean 'er'?",
    "strategy=[er,ewcc]": "strategy=ewcc does not exist; did you mean 'ewc'?",
    "strategy=er strategy.er.capcity=5": "did you mean 'strategy.er.memory.capacity'?",
    "strategy.er.n_replay=5": "strategy=er is not chosen; add strategy=er",
    "epochs=3": "there is no key 'epochs'; did you mean 'train.epochs'?",
    "source=mnist": "did you mean 'scenario/source'?",
    "scenario.source=mnist": "write scenario/source=mnist",
    "optimizer.nesterov=true": r"optimizer takes it all the same: \+optimizer.nesterov=true",
    "+optimizer.nestrov=true": "optimizer.nestrov is not a parameter of torch.optim.SGD; did you mean 'nesterov'?",
    "+sead=3": "sead is a key that nothing reads; did you mean 'seed'?",
    # what is no override, or asks for what is not to be had
    "strategy": "strategy: this override cannot be read; write key=value",
    "output=a=b": """quote it twice: 'output="a=b"'""",
    "strategy=[er,er]": "names 'er' 2 times",
    "strategy=er,ewc": "strategy=er,ewc names several values; add -m",
    "learner=[sgd,joint]": "one learner at a time; -m learner=sgd,joint runs each",
    "~learner": "'learner' cannot be taken away",
    "memory=reservoir": "say whose memory, e.g. memory@strategy.er.memory=reservoir",
    "hydra.run.dir=x": "hydra's own settings are not used here",
    "strategy=null": "strategy=None does not exist; did you mean 'none'?",
    # wrong types and values
    "train.epochs=abc": "epochs=abc must be an integer",
    "train.epochs=0": "train.epochs=0 must be at least 1",
    "train.batch_size=1.5": "batch_size=1.5 must be an integer",
    "optimizer.lr=abc": "optimizer.lr=abc must be a number",
    "optimizer.lr=nan": "optimizer.lr=nan must be a number",
    "optimizer.lr=0": "optimizer.lr=0 must be above 0: no step would move a weight",
    "optimizer.lr=-1": "the optimizer cannot be made: Invalid learning rate: -1",
    "seed=-1": "seed=-1 must be an integer of at least 0",
    "seed=true": "seed=True must be an integer",
    "threads=0": "threads=0 must be an integer of at least 1, or auto",
    "name=a/b": "name='a/b' must be letters, digits",
    "output=": "output='' must be a string that is not empty",
    "model.hidden=[]": r"model.hidden=\[\] must name at least one width",
    "model.hidden=5": "model.hidden=5 must be a list, each item an integer",
    "model.hidden=[a]": r"model.hidden=\['a'\] must be a list, each item an integer",
    "probe.every=0": "probe.every=0 must be at least 1",
    "scheduler=step scheduler.step_size=0": "the scheduler cannot make a step: integer modulo by zero",
    "device=foo": "device=foo is unknown; use cpu, cuda, cuda:1, mps or auto",
    "device=cuda:77": "device=cuda:77 is not on this machine, which has cpu",
    "strategy=ewc strategy.ewc.strength=abc": "strategy.ewc.strength=abc must be a number",
    # what does not fit together
    "learner=slda strategy=er": "learner=slda takes no strategy, so strategy=er has no effect",
    "learner=joint strategy=er": "learner=joint takes no strategy",
    "learner=slda optimizer.lr=3": "learner=slda takes no optimizer, so optimizer.lr=3 has no effect",
    "train.head=per_task": "head=per_task asks for task labels, and this stream hides them",
    "train.batch_size=500": "batch_size=500 is larger than the smallest experience of 80 rows",
    "scenario.n_tasks=3": "scenario.n_tasks=3 does not divide the 4 classes; use one of 1, 2, 4",
    "scenario.kind=data scenario.n_tasks=50": "has no test rows; use fewer tasks",
    "strategy=er strategy.er.memory.capacity=0": "strategy.er.memory.capacity=0 rows must be at least 1 row",
    "strategy=er memory@strategy.er.memory=ring strategy.er.memory.capacity=3": (
        "strategy.er.memory.capacity=3 must be at least 1 row for each of 4 classes"
    ),
    "strategy=icarl strategy.icarl.unit=row": "strategy.icarl.unit='row' is unknown",
    "learner=gdumb learner.memory.capacity=0": "learner.memory.capacity=0 rows must be at least 1 row",
    "learner=buffer_knn learner.memory.store=ids": "learner.memory.store='ids' is unknown",
    "strategy=er strategy.er.memory.capacity=7 strategy.er.memory.unit=bytes": "at least one row's 40 bytes",
    "scenario.arrival_rows=5 strategy=ewc": "strategy 'ewc' needs task boundaries",
    "scenario.arrival_rows=5 strategy=agem": (
        "strategy.agem.remember=end needs task boundaries, and this stream hides them; use strategy.agem.remember=step,"
    ),
    "scenario.arrival_rows=5 strategy=der strategy.der.remember=end": "strategy.der.remember=end needs task boundaries",
    "scenario.arrival_rows=5 train.head=current": (
        "train.head=current needs task boundaries, and this stream hides them; use train.head=seen"
    ),
    "strategy=er memory@strategy.er.memory=class_balanced strategy.er.memory.capacity=3": (
        "strategy.er.memory.capacity=3 must be at least 1 row for each of 4 classes"
    ),
    "learner=buffer_knn learner.memory.capacity=3": (
        "learner.memory.capacity=3 must be at least 1 row for each of 4 classes"
    ),
    # data that is not there
    "scenario/source=mnist scenario.source.root=/nowhere": "no /nowhere/MNIST/raw.*set scenario.source.root.*fetch it",
    "scenario/source=npz": "scenario.source.path has no default; set it",
    "scenario/source=npz scenario.source.path=/nowhere/x.npz": "no file /nowhere/x.npz",
    # the fence
    "model._target_=os.system": "os.system is outside the fence.*--allow os",
    "model._target_=continual.experiment.run": "continual.experiment.run is outside the fence",
    "model._target_=torch.nn.modules.module.warnings.warn": "there is no 'warnings' to call",
    "model._target_=continual.learner.deepcopy": "is really copy.deepcopy, is outside the fence",
    "model._target_=continual.models.mlp.__globals__.get": "must be the literal dotted name of a public class",
    "model._target_=${device}": "must be the literal dotted name",
    "model.hidden=${oc.env:HOME}": "only plain references",
    "model._target_=continual.models.mlpp": "there is no 'mlpp' to call in continual.models; did you mean 'mlp'?",
}


def refused(cli, tmp_path, *words):
    """The one line that a command ends with; asserts that it wrote nothing and showed no traceback."""
    before = set(tmp_path.rglob("*"))
    code, out, err = cli(*words)
    assert code == 2, err
    assert out == ""
    assert set(tmp_path.rglob("*")) == before
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("overrides", CONFIG)
def test_mistakes_in_the_config(cli, tmp_path, overrides):
    error = refused(cli, tmp_path, "run", *SMALL, f"output={tmp_path}/runs", *overrides.split())
    assert re.search(CONFIG[overrides], error), error


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ("seed=range(0)", "seed=range.0. names no value"),
        ("seed=interval(0,1)", "cannot be read"),
        ("strategy=none,erx", "did you mean 'er'?"),
        ("train.batch_size=10,500", "batch_size=500 is larger"),
    ],
)
def test_one_bad_job_of_a_sweep_stops_it_before_the_first(cli, tmp_path, sweep, told):
    assert re.search(told, refused(cli, tmp_path, "run", "-m", *SMALL, f"output={tmp_path}/runs", sweep))


def arrays(tmp_path, x, y):
    np.savez(tmp_path / "data.npz", x=np.asarray(x, np.float32), y=np.asarray(y))
    return ("scenario/source=npz", f"scenario.source.path={tmp_path}/data.npz")


def spoilt(value):
    x = np.zeros((40, 3))
    x[6, 1] = value
    return x


DATA = {
    "nan": (spoilt(np.nan), [0, 1] * 20, "data.npz, x, row 7 .*NaN or inf in 1 of 40 rows"),
    "inf": (spoilt(np.inf), [0, 1] * 20, "data.npz, x, row 7 .*NaN or inf"),
    "negative label": (np.zeros((40, 3)), [0, 1] * 19 + [0, -1], "the label -1 is negative"),
    "gap": (np.zeros((40, 3)), [0, 2] * 20, "no row has the label 1"),
    "no rows": (np.zeros((0, 3)), np.zeros(0, int), "x has no rows"),
    "lengths": (np.zeros((40, 3)), [0, 1], "x has 40 rows but y has the shape"),
    "one class": (np.zeros((40, 3)), [0] * 40, "all labels are '0'; a classifier needs at least 2 classes"),
}


@pytest.mark.parametrize("case", DATA)
def test_mistakes_in_the_data(cli, tmp_path, case):
    x, y, told = DATA[case]
    source = arrays(tmp_path, x, y)
    words = ("run", *source, "scenario.n_tasks=2", "track=none", f"output={tmp_path}/runs")
    assert re.search(told, refused(cli, tmp_path, *words))


def test_a_label_that_is_not_among_the_classes(cli, tmp_path):
    source = arrays(tmp_path, np.zeros((40, 3)), [0, 1] * 19 + [0, 7])
    words = ("run", *source, "scenario.source.classes=[0,1]", "track=none", f"output={tmp_path}/runs")
    assert re.search("data.npz, y, row 40 .*'7' is not among classes", refused(cli, tmp_path, *words))


def test_a_table_with_an_empty_cell(cli, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,0\n2,1\n" * 10 + ",1\n")
    source = ("scenario/source=table", f"scenario.source.path={tmp_path}/t.csv", "scenario.source.label=b")
    words = ("run", *source, "scenario.n_tasks=2", "track=none", f"output={tmp_path}/runs")
    assert re.search("t.csv, column 'a', row 21", refused(cli, tmp_path, *words))


def test_a_misspelt_file_names_its_neighbour(cli, tmp_path):
    arrays(tmp_path, np.zeros((4, 3)), [0, 1] * 2)
    words = ("run", "scenario/source=npz", f"scenario.source.path={tmp_path}/date.npz", f"output={tmp_path}/runs")
    assert "did you mean 'data.npz'?" in refused(cli, tmp_path, *words)


@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_an_output_that_cannot_be_a_folder(cli, tmp_path, multirun):
    (tmp_path / "runs").write_text("")  # root may write anywhere, but not below a file
    error = refused(cli, tmp_path, "run", *multirun, *SMALL, f"output={tmp_path}/runs/here")
    assert str(tmp_path / "runs") in error
    assert "cannot be" in error


def test_a_folder_that_may_not_be_written(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "is not writable" in refused(cli, tmp_path, "run", "-m", *SMALL, f"output={tmp_path}/runs")


def test_a_second_process_on_one_run(cli, tmp_path):
    words = (*SMALL, f"output={tmp_path}/runs")
    directory = continual.compose(*words).directory
    directory.mkdir(parents=True)
    lock = files.acquire(directory / "lock")
    try:
        assert "is in use by process" in refused(cli, tmp_path, "run", *words)
    finally:
        lock.release()


def test_a_task_label_on_a_stream_that_hides_it(tmp_path):
    run = continual.run(*SMALL, f"output={tmp_path}/runs")
    learner = continual.load(run.path)
    with pytest.raises(continual.UserError, match="predict got task=1, and this stream hides task labels"):
        learner.predict(next(iter(learner.network.parameters()))[:1, :8], task=1)


def test_a_config_folder_that_is_not_there(cli, tmp_path):
    assert "--config-dir /nowhere is not a folder" in refused(cli, tmp_path, "run", "--config-dir", "/nowhere")
    assert "--config-dir /nowhere is not a folder" in refused(cli, tmp_path, "list", "--config-dir", "/nowhere")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu"], "there is no command 'rnu'; did you mean 'run'?"),
        (["run", "--mutlirun"], "unrecognized arguments: --mutlirun; see continual run --help"),
        (["run", "--allow"], "expected one argument"),
        (["list", "strateggy"], "there is nothing called 'strateggy' to list; did you mean 'strategy'?"),
        (["show", "/nowhere"], "/nowhere does not exist"),
        (["compare", "/nowhere"], "/nowhere does not exist"),
        (["compare", "--json", "/"], "/ is a folder"),
        (["compare", "--json", "a", "--csv", "b"], "not allowed with"),
    ],
)
def test_mistakes_on_the_command_line(cli, tmp_path, words, told):
    assert told in refused(cli, tmp_path, *words)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "meta", "xpu"])
def test_a_device_that_is_not_there(monkeypatch, name):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [devices.usable(there).type for there in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda",
        "cuda",
        "cuda",
        "cpu",
    ]
    with pytest.raises(
        continual.UserError, match=f"device={name} is not on this machine, which has cpu, cuda:0, cuda:1"
    ):
        devices.usable(name)


def test_torch_and_torchvision_that_do_not_match(cli, tmp_path, monkeypatch):
    package = tmp_path / "fake" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    error = refused(cli, tmp_path, "run", *SMALL, "model=torchvision", f"output={tmp_path}/runs")
    assert re.search(r"torch \S+ and torchvision \S+ do not belong together.*install a matching pair", error)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("strategy=scr", "strategy.scr.memory.capacity=9"), "strategy.scr.memory"),
        (("learner=gdumb", "learner.memory.capacity=9"), "learner.memory"),
    ],
)
def test_a_memory_without_a_row_for_each_class_is_refused(overrides: tuple[str, ...], key: str) -> None:
    config = configs.compose("track=none", *overrides)
    with pytest.raises(UserError, match=rf"{key}.capacity=9 must be at least 1 row for each of 10 classes"):
        configs.build_learner(config, configs.build_stream(config).spec)


@pytest.mark.parametrize("name", ["multi_head", "pnn"])
def test_a_head_for_each_task_label_needs_task_labels(name: str) -> None:
    config = configs.compose("track=none", f"learner=avalanche/{name}")
    with pytest.raises(UserError, match="task labels"):
        configs.build_learner(config, configs.build_stream(config).spec)
