"""Render docs/avalanche.md: how to use Avalanche here, and what became of each of its strategies and plug-ins.

The table is read from the YAMLs in conf/learner/avalanche: which classes each starts, its first line, and the laws that
it says it breaks. ``tests/test_bridge.py`` compares it with the classes of the installed Avalanche::

    python scripts/avalanche_page.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "conf" / "learner" / "avalanche", ROOT / "docs" / "avalanche.md"

WITHOUT = {
    "AETraining": "trains an autoencoder: it answers no class",
    "ExpertGateStrategy": "takes only its own model, which builds a pretrained AlexNet for each task: with "
    "`pretrained=False` it asks torchvision for weights by a name that there is not",
    "LearningToPrompt": "builds a vision transformer of width 768 for images of 224 x 224, by its name in the package "
    "timm, which Avalanche does not require; `model=l2p` is the method on a network of any size",
    "ObjectDetectionTemplate": "detects objects in images: it answers no class",
    "_ExpertGatePlugin": "reads the model of `ExpertGateStrategy`, whose part it is",
    "_ICaRLPlugin": "a private part of `ICaRL`, which `icarl` starts; configs name public classes only",
    "lamaml.LaMAML": "needs the package higher, which Avalanche does not require; `la_maml` is the same method without",
}
"""Strategies and plug-ins without a YAML, and why. A name that is given twice stands with its module."""

HEAD = """\
<!-- Rendered by `python scripts/avalanche_page.py` from conf/learner/avalanche; do not edit. -->
# Avalanche

Strategies, plug-ins and benchmarks of [Avalanche](https://avalanche.continualai.org) 0.6.0 go through one door,
`continual/bridges/`. `import avalanche` takes seconds, so it happens only when one of them is asked for.

## Its strategies as learners

```sh
continual run learner=avalanche/ewc learner.strategy.ewc_lambda=10
continual run -m learner=sgd,avalanche/replay,avalanche/der 'seed=range(5)'
continual list learner                 # all of them, with what they do
```

Data, model, optimizer, batches, passes and seed are those of the config, as for any learner; what is below
`learner.strategy` are the arguments of Avalanche's class. Records, metrics and costs are the same as for ours. Any
other class for classification, or several plug-ins at once, is a YAML of your own: copy one that is like it.

What differs from a learner of ours:

- An experience is one step: Avalanche trains it in one go, so nothing is measured or stored within it.
- A run that was stopped starts over, and a learner that was loaded only answers: what plug-ins keep can only be
  pickled.
- Its loggers, metrics and evaluation within training are off: `continual` measures.
- A loss that is not finite stops it at its update, as it does ours; on an accelerator one update in a hundred is looked
  at, and the last one of an experience.
- No number among its arguments may be below 0 (but -1 where Avalanche means none by it), sizes of memories not below 1.

## Our streams as its benchmarks, and back

```python
from continual.bridges.avalanche import to_avalanche

benchmark = to_avalanche(stream)  # train_stream, test_stream; rows are (x, y, task label)
```

```sh
continual run --allow avalanche.benchmarks scenario=avalanche scenario.benchmark.n_experiences=10
```

`scenario.benchmark._target_` names any function of `avalanche.benchmarks` that makes a benchmark with a test experience
for each training experience; `scenarios.avalanche.stream_from_avalanche(benchmark)` does the same for an object.

## Laws

The laws of every learner (`continual.contract.LEARNER_LAWS`) are applied to each YAML below; what one breaks stands in
the YAML (`# breaks <law>: <reason>`), and is tested to be broken. A `_plugin` on plain training is compared with the
strategy of its name: the same weights, so the same laws.

The laws of native learners (`NATIVE_LAWS`) are not applied, because no learner of Avalanche could obey them:

| law | why not |
|---|---|
| `resume_is_exact` | it has no pauses within an experience, and a snapshot cannot hold what plug-ins keep |
| `memory_is_bounded` | a row that its memories keep holds all rows alive that came with it |
| `bytes_are_declared` | what it holds is counted by walking through its objects: nothing is declared |
| `all_weights_are_trained` | which weights are trained is decided by classes that are not ours |
| `a_member_equals_a_run_alone`, `replayed_is_computed` | it joins no cohort, and its steps are not recorded |
| `neutral_element`, `strength_acts` | they switch a strategy of ours off in a learner; its SI never acts on a CPU |

## Every strategy and plug-in

| class | `learner=avalanche/` | what it is, or why there is none |
|---|---|---|
"""


def yamls() -> dict[str, list[str]]:
    """Class of Avalanche -> names of the YAMLs that start it."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        targets = re.findall(r"avalanche\.training\.(\S*?)(\w+)\n", path.read_text("utf-8"))
        kinds = [name for module, name in targets if "storage_policy" not in module]
        for kind in [name for name in kinds if name != "Naive"] or ["Naive"]:
            found.setdefault(kind, []).append(path.stem)
    return found


def about(name: str) -> str:
    """What a YAML says of itself: its first line, and the laws that it breaks."""
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    said = text.splitlines()[0].removeprefix("# ").removeprefix("Avalanche's ")
    broken = [f"breaks `{law}`: {reason}" for law, reason in re.findall(r"^# breaks (\w+): (.+)$", text, re.MULTILINE)]
    return "; ".join([said, *broken])


def render() -> str:
    """The page."""
    rows = [f"| `{kind}` | `{name}` | {about(name)} |" for kind, names in yamls().items() for name in names]
    rows += [f"| `{kind}` | none | {reason} |" for kind, reason in WITHOUT.items()]
    return HEAD + "\n".join(sorted(rows, key=lambda row: row.replace("`_", "`").lower())) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
