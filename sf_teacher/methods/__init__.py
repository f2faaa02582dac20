"""One config dataclass for each teacher-side method; a method is its config and its branch set, nothing else."""
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..errors import SFTeacherError
from ._branches import BranchSet, Plan, StudentBranches
from ._pool import SampledPool
from ._pyramid import FeaturePyramid

KL_DIRECTIONS = ('teacher||branch', 'branch||teacher')


@dataclass(frozen=True)
class Method:
    """Coefficients of the joint loss that every method has.

    Subclasses set the defaults, add options of their own and build their branch set.

    Args:
        teacher_weight: lambda_T, weight of the teacher's own loss.
        ce_weight: lambda_CE, weight of the branches' task loss.
        kl_weight: lambda_KL, weight of the divergence between the teacher and its branches.
        temperature: tau of the divergence.
        kl_direction: ``"teacher||branch"`` or ``"branch||teacher"``.
        detach_teacher_logits: Whether the divergence leaves the teacher's logits alone, so that it trains the teacher
            only through its features.
        reduction: ``"mean"`` or ``"sum"`` over the branches.
    """
    takes_students: ClassVar[bool] = True   # whether its branches are made of the user's students

    teacher_weight: float = 1.
    ce_weight: float = 1.
    kl_weight: float = 1.
    temperature: float = 1.
    kl_direction: str = 'teacher||branch'
    detach_teacher_logits: bool = False
    reduction: str = 'mean'

    def __post_init__(self) -> None:
        for f in fields(self):
            self._require(type(f.default) is not bool or type(getattr(self, f.name)) is bool, f.name, 'True or False')
        for name in ('teacher_weight', 'ce_weight', 'kl_weight'):
            self._require(_number(getattr(self, name)) and getattr(self, name) >= 0, name, 'a finite number >= 0')
        self._require(_number(self.temperature) and self.temperature > 0, 'temperature', 'a finite number > 0')
        self._require(self.kl_direction in KL_DIRECTIONS, 'kl_direction', f'one of {KL_DIRECTIONS}')
        self._require(self.reduction in ('mean', 'sum'), 'reduction', "'mean' or 'sum'")

    def _require(self, condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise SFTeacherError(f'{type(self).__name__}({name}={getattr(self, name)!r}): {name} must be {allowed}')

    @property
    def uses_branches(self) -> bool:
        """Whether the branches contribute to the loss; if not, they are not executed."""
        return bool(self.ce_weight or self.kl_weight)

    def build(self, plan: Plan) -> BranchSet:
        """Build the branch set for a teacher."""
        raise NotImplementedError


@dataclass(frozen=True)
class SFTN(Method):
    """Student-Friendly Teacher Networks (Park et al., NeurIPS 2021, arXiv 2102.07650).

    The defaults are ours, chosen by `examples/cifar100/sweep.yaml`, because the settings as widely reported do harm in
    short trainings; `SFTN.reported()` has those.

    Args:
        kl_weight: As in `Method`; ours, 3 as reported.
        detach_teacher_logits: As in `Method`; ours, False as reported.
        detach_features: Whether the branches leave the teacher's features alone (ours; a control experiment).
        shared: Whether the branches of a student share the weights they have in common (ours; the paper's are
            separate, as reported).
        transform_act: See `Transform`.
    """
    kl_weight: float = 1.
    detach_teacher_logits: bool = True
    detach_features: bool = False
    shared: bool = False
    transform_act: str = 'auto'

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.transform_act in ('auto', 'relu', 'none'), 'transform_act', "'auto', 'relu' or 'none'")

    @classmethod
    def reported(cls) -> 'SFTN':
        """The settings as widely reported for the paper: lambda_KL = 3, tau = 1, nothing detached."""
        return cls(kl_weight=3., detach_teacher_logits=False)

    def build(self, plan: Plan) -> BranchSet:
        return StudentBranches(plan, shared=self.shared, act=self.transform_act, detach=self.detach_features)


@dataclass(frozen=True)
class TESKD(Method):
    """Teacher Evolution via Self-Knowledge Distillation (Li et al. 2021, arXiv 2110.00329): no students needed.

    0.2 (CE(z_T, y) + sum_i CE(z_i, y)) + 0.8 sum_i T^2 KL(p_T || p_i) + 1e-7 sum_i ||f_i - stopgrad(f_T)||^2 with
    T = 4, and the target of the divergence not detached [code].

    Args:
        feature_weight: Weight of the squared distance between the pooled features of students and teacher, summed over
            batch, channels and students, so that it grows with the batch [code].
        width: D, channels of the pyramid (a small default, ours); None for those of the teacher's last stage [code],
            which costs several times the teacher's own forward.
    """
    takes_students: ClassVar[bool] = False

    teacher_weight: float = 0.2
    ce_weight: float = 0.2
    kl_weight: float = 0.8
    temperature: float = 4.
    reduction: str = 'sum'
    feature_weight: float = 1e-7
    width: int | None = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(_number(self.feature_weight) and self.feature_weight >= 0, 'feature_weight',
                      'a finite number >= 0')
        self._require(self.uses_branches or not self.feature_weight, 'feature_weight',
                      '0 where ce_weight and kl_weight are, as the students are then not executed')
        self._require(self.width is None or (type(self.width) is int and self.width > 0), 'width',
                      "a whole number > 0, or None for the channels of the teacher's last stage")

    @classmethod
    def official(cls) -> 'TESKD':
        """The settings of the authors' code, the width of the pyramid included."""
        return cls(width=None)

    def build(self, plan: Plan) -> BranchSet:
        return FeaturePyramid(plan, width=self.width, feature_weight=self.feature_weight)


@dataclass(frozen=True)
class GTN(Method):
    """Generic Teacher Network (Binici, Wu and Mitra, BMVC 2024, arXiv 2407.16040), after the abstract: one teacher for
    every student of a pool, which is a weight-sharing supernet; the teacher is conditioned on students sampled from it.

    Everything else is ours: how students share, see `SampledPool`; that one student is sampled a step; that the loss is
    SFTN's on the sampled path, with the defaults of `SFTN` here.

    Args:
        sampler: ``"uniform"``, or ``"learned"``: a trained distribution, estimator and loss ours.
        seed: Of the sequence of paths.
        path_weight: Weight of the learned sampler's loss.
        entropy_weight: Weight of its distance from the uniform distribution, which holds up a collapse on one student.
        require_sharing: Refuse a pool in which some student shares weights with no other.
        detach_features: As in SFTN.
        transform_act: See `Transform`.
    """
    kl_weight: float = 1.
    detach_teacher_logits: bool = True
    sampler: str = 'uniform'
    seed: int = 0
    path_weight: float = 1.
    entropy_weight: float = 0.1
    require_sharing: bool = False
    detach_features: bool = False
    transform_act: str = 'auto'

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.sampler in ('uniform', 'learned'), 'sampler', "'uniform' or 'learned'")
        self._require(type(self.seed) is int, 'seed', 'a whole number')
        for name in ('path_weight', 'entropy_weight'):
            self._require(_number(getattr(self, name)) and getattr(self, name) >= 0, name, 'a finite number >= 0')
        self._require(self.transform_act in ('auto', 'relu', 'none'), 'transform_act', "'auto', 'relu' or 'none'")

    def build(self, plan: Plan) -> BranchSet:
        return SampledPool(plan, self.sampler, self.seed, self.path_weight, self.entropy_weight, self.require_sharing,
                           act=self.transform_act, detach=self.detach_features)


METHODS: dict[str, type[Method]] = {'sftn': SFTN, 'teskd': TESKD, 'gtn': GTN}


def get_method(method: str | Method) -> Method:
    """A method's config from its name (default settings) or as it is.

    Raises:
        SFTeacherError: There is no method of this name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method.lower() not in METHODS:
        raise SFTeacherError(f'unknown method {method!r}: give one of {", ".join(map(repr, METHODS))} or a config such '
                             f'as SFTN(kl_weight=0.5)')
    return METHODS[method.lower()]()


def make_method(name: str, kwargs: Mapping[str, Any]) -> Method:
    """A method's config from its name and settings.

    Raises:
        SFTeacherError: There is no such method, or it has no such setting; with close names.
    """
    cls = type(get_method(name))
    known = [f.name for f in fields(cls)]
    for key in kwargs:
        if key not in known:
            close = difflib.get_close_matches(key, known, 3)
            raise SFTeacherError(f'{cls.__name__} has no setting {key!r}; '
                                 + (f'like it: {", ".join(close)}' if close else f'it has {", ".join(known)}'))
    return cls(**kwargs)


def options(method: Method) -> dict[str, Any]:
    """The config as plain values, for model cards and logs."""
    return {f.name: getattr(method, f.name) for f in fields(method)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
