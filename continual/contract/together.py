"""The law of runs that are trained together."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from continual.cohort import Cohort, hindrance
from continual.contract.tools import MakeLearner, MakeStream, learn
from continual.state import named_tensors
from continual.stopping import Stop
from continual.types import Experience, Learner

CLOSE = 1e-4  # of the largest entry of a tensor, and at least of 1: what rounding makes of a few updates


def a_member_equals_a_run_alone(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """Trained together with a run on the same experiences in reverse order, a learner ends as it ends alone.

    Of learners that can be trained together, see :func:`continual.cohort.hindrance`.
    """
    if hindrance(make_learner(), None):
        return
    forth = list(make_stream())
    back = [replace(experience, index=index) for index, experience in enumerate(reversed(forth))]
    references = [_learned(make_learner(), experiences) for experiences in (forth, back)]
    members, cohort = [make_learner() for _ in references], Cohort(Stop(0))
    for member in members:
        cohort.join(member)
    for _ in cohort.run([partial(_learned, *pair) for pair in zip(members, (forth, back), strict=True)]):
        pass
    for member, reference in zip(members, references, strict=True):
        mine, own = dict(named_tensors(member.state_dict())), dict(named_tensors(reference.state_dict()))
        assert mine.keys() == own.keys(), "in a cohort its state has other parts than alone"
        for name, tensor in own.items():
            bound = CLOSE * float(tensor.double().abs().amax().clamp(min=1)) if tensor.numel() else 0.0
            told = f"trained together with another run, {name} differs from that of the same run alone"
            fix = "what mask, rows and penalty read must be in attributes of the strategy, and they must write nowhere"
            assert bool(((mine[name].double() - tensor.double()).abs() <= bound).all()), f"{told}; {fix}"
        assert member.cost() == reference.cost(), f"{member.cost()} in a cohort, {reference.cost()} alone"


def _learned(learner: Learner, experiences: Sequence[Experience]) -> Learner:
    for experience in experiences:
        learn(learner, experience)
    return learner
