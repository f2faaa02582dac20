"""Labels that a loader's dataset knows without decoding: a wrong one is met before the first step, not epochs later."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.data.loader import PrefetchLoader
from timm.task import TrainingTask
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from ..rng import random_state, set_random_state
from .batches import check_labels, num_classes
from .datasets import targets
from .in_memory import InMemoryLoader

_OF_ALL = (SequentialSampler, RandomSampler, DistributedSampler)    # samplers that leave no image out


def check_known_labels(task: TrainingTask, loader: Any, role: str, lowest: int = 0) -> None:
    """Refuse labels out of range where the data tell all of them at once; elsewhere each batch is looked at.

    A dataset may change what it has recorded (a `target_transform`, a `collate_fn`): the image that looks wrong is
    loaded, and what the loader gives for it decides.

    Raises:
        SFTeacherError: The loader gives a label that is none of the model's classes.
    """
    count = num_classes(task)
    if isinstance(loader, InMemoryLoader):
        return check_labels(loader.labels, task, role, lowest)
    inner = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if not isinstance(inner, DataLoader) or type(inner.batch_sampler) is not BatchSampler or \
            not isinstance(inner.sampler, _OF_ALL):
        return
    known = recorded(inner.dataset)
    if known is None:
        return
    wrong = (known < lowest) | (known >= (np.inf if count is None else count))
    if not wrong.any():
        return
    index = int(wrong.argmax())
    state = random_state(task.device)       # as if nothing had been looked at
    try:
        _, target, *_ = inner.collate_fn([inner.dataset[index]])
        target = torch.as_tensor(target)
    except Exception:       # what cannot be loaded says so in its own turn
        return
    finally:
        set_random_state(state, task.device)
    check_labels(target, task, role, lowest,
                 f' for image {index} of its dataset (whose labels are {known.min()}..{known.max()})')


def recorded(dataset: Any) -> np.ndarray[Any, Any] | None:
    """The labels of all images [N], where a dataset has them at hand: `targets`, `labels`, `samples`, tensors."""
    if isinstance(dataset, Subset):
        inner = recorded(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=int)]
    if isinstance(dataset, ConcatDataset):
        parts = [recorded(part) for part in dataset.datasets]
        return np.concatenate([part for part in parts if part is not None]) if all(
            part is not None for part in parts) else None
    try:
        found = dataset.tensors[1] if isinstance(dataset, TensorDataset) else targets(dataset)
        labels = np.asarray(getattr(dataset, 'labels', None) if found is None else found)
        return labels if labels.ndim == 1 and labels.dtype.kind in 'iu' and len(labels) == len(dataset) else None
    except (TypeError, ValueError, IndexError):     # of another kind, under the same name
        return None
