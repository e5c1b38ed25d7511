"""Which arm of an experiment plays which part: the report is laid out by it."""

from __future__ import annotations

from dataclasses import dataclass

from hssl.benchmark.experiment import Experiment
from hssl.config import PretrainConfig


@dataclass(frozen=True)
class Roles:
    """Which arm plays which part.

    Attributes:
        scratch: The first arm without pre-training.
        single: The first arm that is pre-trained on the task at hand, by the hierarchical objective.
        joint: The first arm that is pre-trained on all tasks, by the hierarchical objective.
        adapted: The first arm that then goes on, on the task at hand alone.
        baselines: Arms with another objective.
        variants: All other arms: the ablation, and controls.
    """

    scratch: str | None
    single: str | None
    joint: str | None
    adapted: str | None
    baselines: tuple[str, ...]
    variants: tuple[str, ...]

    @property
    def main(self) -> tuple[str, ...]:
        """Scratch, single-domain, joint and adapted, as far as they are in the experiment."""
        return tuple(arm for arm in (self.scratch, self.single, self.joint, self.adapted) if arm is not None)


def find_roles(experiment: Experiment) -> Roles:
    """Finds the part of each arm in what it does, whatever its name."""
    default = PretrainConfig.model_fields["objective"].default
    objectives = {
        name: arm.pretrain.get("objective", experiment.pretrain.get("objective", default))
        for name, arm in experiment.arms.items()
    }
    first: dict[tuple[str, bool], str] = {}
    for name, arm in experiment.arms.items():
        if arm.domains == "none" or objectives[name] == default:
            first.setdefault((str(arm.domains), arm.adapt is not None), name)
    scratch, single = first.get(("none", False)), first.get(("single", False))
    joint, adapted = first.get(("joint", False)), first.get(("joint", True))
    others = [name for name in experiment.arms if name not in (scratch, single, joint, adapted)]
    baselines = tuple(
        name for name in others if experiment.arms[name].domains != "none" and objectives[name] != default
    )
    return Roles(scratch, single, joint, adapted, baselines, tuple(name for name in others if name not in baselines))
