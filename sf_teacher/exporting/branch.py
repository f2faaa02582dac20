"""Save a trained branch as the start of a student."""
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ..files import written_at_once
from .architecture import name_of
from .writer import README, check_place, find_place


def export_branch(
        model: nn.Module,
        boundary: Sequence[str],
        untrained: Sequence[str],
        folder: str | os.PathLike[str],
) -> Path:
    """See `StudentFriendlyTask.export_branch`.

    Args:
        model: The student behind the boundary, under the student's own keys.
        boundary: The modules at which it starts.
        untrained: The student's other keys.
        folder: Where to.
    """
    target = find_place(folder, overwrite=False)
    state = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()
             if isinstance(t, torch.Tensor)}      # not extra state
    notes = {
        'student': name_of(model),
        'boundary': list(boundary),
        'trained': sorted(state),
        'untrained': list(untrained),
    }
    with written_at_once(target, partial(check_place, target, False)) as temporary:
        safetensors.torch.save_file(state, temporary / 'branch.safetensors', {'sf_teacher': json.dumps(notes)})
        (temporary / 'branch.json').write_text(json.dumps(notes, indent=2), encoding='utf-8')
        (temporary / README).write_text(
            f'A trained branch as the start of {notes["student"]}: everything after {", ".join(boundary)}.\n\n'
            f'{len(untrained)} weights before it are not trained by any branch and not in the file; '
            'they are listed as "untrained" in branch.json.\n\n'
            '```python\nweights = safetensors.torch.load_file("branch.safetensors")\n'
            'student.load_state_dict(weights, strict=False)\n```\n',
            encoding='utf-8')
    return target
