"""torchdistill: student-friendly teachers in its YAML configs, and their training inside them.

Importing this module registers everything below; a config names it under ``dependencies``:

.. code-block:: YAML
   :caption: An ordinary knowledge distillation config with an exported teacher: these lines change, nothing else.

    dependencies:
      - name: 'sf_teacher.adapters.torchdistill'

    models:
      teacher_model:
        key: 'sf_teacher.timm_teacher'
        kwargs:
          model_name: 'local-dir:./exported/resnet50-sft'
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import timm
from timm.layers import convert_sync_batchnorm
from torch import distributed, nn
from torch.utils.data import Dataset
from torchdistill.common.constant import def_logger
from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT, register_forward_proc_func
from torchdistill.datasets.registry import DATASET_WRAPPER_DICT, register_dataset_wrapper
from torchdistill.losses.registry import MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss
from torchdistill.models.registry import (
    AUXILIARY_MODEL_WRAPPER_DICT,
    MODEL_DICT,
    register_auxiliary_model_wrapper,
    register_model,
)

from sf_teacher import SFTeacherError
from sf_teacher.methods import METHODS
from sf_teacher.methods.base import Method

from ._label_names import follow_label_names
from ._loss import MethodLoss
from ._module_paths import remember
from ._student_method import Teacher4StudentMethod
from ._timm import build_model, build_teacher
from ._torchdistill import Teacher4Method
from ._torchvision import build_torchvision_teacher

logger = def_logger.getChild(__name__)


def timm_teacher(
        model_name: str,
        checkpoint_path: str | None = None,
        pretrained: bool = False,
        num_classes: int | None = None,
        label_names: Sequence[str] | str | None = None,
        **kwargs: Any,
) -> nn.Module:
    """A frozen teacher with weights for sure, in eval mode.

    torchdistill never touches a teacher's mode, so a teacher in eval mode stays in it and its normalisation statistics
    stay as they were exported. Under a key of torchvision's the teacher is in train mode and they drift.

    Args:
        model_name: ``local-dir:FOLDER`` for an exported teacher, or any timm name.
        checkpoint_path: Weights for a timm name, e.g. the ``teacher.pth`` of an exported folder.
        pretrained: Whether a timm name comes with timm's pretrained weights.
        num_classes: Classes; an exported folder knows its own and refuses others.
        label_names: The data's class names in the order of its labels: a list, a text file with one a line, or an
            ImageFolder's folder. An exported folder that holds the same names in another order gives logits in this
            one; other names are refused.
        **kwargs: Further arguments of ``timm.create_model``.

    Raises:
        SFTeacherError: There are no weights, they are not this model's, or its classes are others.

    .. code-block:: YAML
       :caption: An exported teacher; leave ``src_ckpt`` out.

        teacher_model:
          key: 'sf_teacher.timm_teacher'
          kwargs:
            model_name: 'local-dir:./exported/resnet50-sft'
    """
    teacher = build_teacher(model_name, checkpoint_path, pretrained, num_classes, **kwargs)
    follow_label_names(teacher, label_names, model_name)
    data = timm.data.resolve_model_data_config(teacher)
    logger.info(f'Teacher `{model_name}` in eval mode; made for images of size {data["input_size"]} normalised with '
                f'mean {data["mean"]} and std {data["std"]}: give it the same')
    return remember(teacher, f'sf_teacher.timm_teacher {model_name!r}')


def torchvision_teacher(
        model_name: str,
        num_classes: int | None = None,
        label_names: Sequence[str] | str | None = None,
) -> nn.Module:
    """An exported teacher as torchvision's module, whose modules have the names that torchdistill's own configs hook.

    For the architectures that torchvision builds too (`sf_teacher.exporting.torchvision_names`): ResNets, ResNeXts,
    DenseNets, VGGs, ConvNeXts, small EfficientNets. In eval mode, in which torchdistill leaves it.

    Args:
        model_name: ``local-dir:FOLDER``, an exported folder.
        num_classes: Classes; the folder knows its own and refuses others.
        label_names: As for `timm_teacher`.

    Raises:
        SFTeacherError: The folder is missing or damaged, its classes are others, or torchvision has no model
            that computes the same.

    .. code-block:: YAML
       :caption: An exported ResNet in a config that hooks `avgpool` or `layer4.-1.relu`; nothing else changes.

        teacher_model:
          key: 'sf_teacher.torchvision_teacher'
          kwargs:
            model_name: 'local-dir:./exported/resnet34-sft'
    """
    teacher = build_torchvision_teacher(model_name, num_classes, label_names)
    return remember(teacher, f'sf_teacher.torchvision_teacher {model_name!r}')


def timm_model(model_name: str, sync_bn: bool = False, **kwargs: Any) -> nn.Module:
    """Any timm model, e.g. a student, or a teacher that is to be trained.

    Args:
        model_name: timm's name, ``local-dir:`` and ``hf-hub:`` too, which come with their weights unless
            ``pretrained`` is False.
        sync_bn: Synchronise batch norm between processes. (torchdistill reads ``sync_bn`` beside ``key`` for
            torchvision's models only.)
        **kwargs: Arguments of ``timm.create_model``.

    Raises:
        SFTeacherError: timm does not build it.

    .. code-block:: YAML
       :caption: An example YAML to instantiate a timm model.

        student_model:
          key: 'sf_teacher.timm_model'
          kwargs:
            model_name: 'resnet18'
            num_classes: 100
          src_ckpt:
          dst_ckpt: './resource/ckpt/resnet18.pt'
    """
    model = build_model(model_name, **kwargs)
    if sync_bn and distributed.is_available() and distributed.is_initialized():
        model = convert_sync_batchnorm(model)
    return remember(model, f'sf_teacher.timm_model {model_name!r}')


def skip_forward(model: nn.Module, sample_batch: Any, *args: Any, **kwargs: Any) -> None:
    """Do not run a model: for the student in the stage that trains the teacher."""


class SkipValidation(Dataset[tuple[Any, int]]):
    """For the stage that trains the teacher: one validation image, with a label that no class has.

    torchdistill's script validates the student after every epoch and keeps its best checkpoint. The untrained student
    is then right on nothing, so that no checkpoint of it is kept. The next stage must name its own images, as
    torchdistill otherwise goes on with these.

    .. code-block:: YAML
       :caption: In the stage that trains the teacher.

        val_data_loader:
          dataset_id: *val
          dataset_wrapper:
            key: 'sf_teacher.skip_validation'
            kwargs:
    """

    def __init__(self, org_dataset: Any) -> None:
        self.org_dataset = org_dataset

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.org_dataset[0][0], -1


def _register(registry: Mapping[str, Any], register: Callable[..., Any], entries: Iterable[tuple[str, Any]]) -> None:
    for key, value in entries:
        taken = registry.get(key)
        if taken is not None and (taken.__module__, taken.__qualname__) != (value.__module__, value.__qualname__):
            raise SFTeacherError(
                f'torchdistill\'s key {key!r} is taken by {taken.__module__}.{taken.__qualname__}: register that under '
                f'another key, or leave its module out of `dependencies`')
        register(key=key)(value)


def _register_method(cls: type[Method]) -> None:
    """Make `Teacher4NAME`, and in the teacher's phase `NAMELoss`, attributes of this module and torchdistill keys."""
    bases = {f'Teacher4{cls.__name__}': Teacher4StudentMethod} if cls.phase == 'student' else {
        f'Teacher4{cls.__name__}': Teacher4Method, f'{cls.__name__}Loss': MethodLoss}
    for name, base in bases.items():
        doc = f'{cls.title or cls.__name__}.\n\n    {base.__doc__}'
        made = type(name, (base,), {'__doc__': doc, '__module__': __name__, 'method_class': cls})
        globals()[name] = made
        if base is MethodLoss:
            _register(MIDDLE_LEVEL_LOSS_DICT, register_mid_level_loss, [(name, made)])
        else:
            _register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper, [(name, made)])


_register(MODEL_DICT, register_model, [
    (f'sf_teacher.{build.__name__}', build) for build in (timm_teacher, torchvision_teacher, timm_model)])
_register(DATASET_WRAPPER_DICT, register_dataset_wrapper, [('sf_teacher.skip_validation', SkipValidation)])
_register(FORWARD_PROC_FUNC_DICT, register_forward_proc_func, [('sf_teacher.skip_forward', skip_forward)])
METHODS.for_each(_register_method)
