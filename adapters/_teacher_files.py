"""What a teacher that is trained inside torchdistill writes: its branches, to resume, and its exported folder."""
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchdistill.common.constant import def_logger
from torchdistill.common.file_util import make_parent_dirs

import sf_teacher
from sf_teacher import SFTeacherError
from sf_teacher.files import write_atomically

logger = def_logger.getChild(__name__)


class BranchCheckpoint:
    """The branches on disk; torchdistill's own checkpoint holds the teacher.

    Args:
        path: The file.
        whose: The wrapper, for messages.
    """

    def __init__(self, path: str, whose: str) -> None:
        self.path, self.whose = path, whose

    def save(self, branches: Any, epoch: int, step: int) -> None:
        """Write the branches after so many epochs and steps; a kill meanwhile leaves those of the epoch before."""
        make_parent_dirs(self.path)
        state = {} if branches is None else branches.state_dict()
        whole = {'model': state, 'memory': getattr(branches, 'memory', {}), 'epoch': epoch, 'step': step}
        write_atomically(Path(self.path), lambda file: torch.save(whole, file))

    def load(self, branches: Any, num_epochs: int | None) -> tuple[int, int]:
        """Read what is there into the branches.

        Returns:
            The epochs and the steps that they were trained for; 0 if there is no file.

        Raises:
            SFTeacherError: The file holds other branches, or is of an earlier version, or these have had all of
                `num_epochs`.
        """
        if not os.path.isfile(self.path):
            return 0, 0
        try:
            state = torch.load(self.path, map_location='cpu', weights_only=True)
            if branches is not None:
                branches.load_state_dict(state['model'])
                if state.get('memory'):
                    branches.memory = state['memory']
            epoch, step = int(state['epoch']), state.get('step')
        except Exception as error:
            raise SFTeacherError(
                f'{self.whose}, `ckpt_file_path`: {self.path} does not hold the branches of this teacher and '
                f'method ({error}). Delete the file to start anew, or name another.') from error
        if step is None:
            raise SFTeacherError(
                f'{self.whose}, `ckpt_file_path`: {self.path} is of an earlier version, which did not keep the step to '
                f'go on from. Delete the file to start anew, or name another.')
        if num_epochs is not None and epoch >= num_epochs:
            raise SFTeacherError(
                f'{self.whose}, `ckpt_file_path`: the branches in {self.path} have been trained for all of '
                f'num_epochs={num_epochs}. Delete the file to start anew, or name another.')
        logger.warning(f'Resuming the branches of {self.path} after epoch {epoch}: for a new run, with another '
                       f'teacher or seed, delete the file or name another')
        return epoch, step


class TeacherExport:
    """The exported folder: written at the last epoch, at each best one, or after every epoch.

    Args:
        arguments: Those of `sf_teacher.export`, ``folder`` among them.
        task: Whose teacher is exported.
        metadata: For the model card, beside what `arguments` have of it.
        best_ckpt: See `Teacher4Method`.
        num_epochs: See `Teacher4Method`.
        whose: The wrapper, for messages.

    Raises:
        SFTeacherError: The arguments could only fail after an epoch of training.
    """

    def __init__(
            self,
            arguments: Mapping[str, Any],
            task: sf_teacher.StudentFriendlyTask,
            metadata: dict[str, Any],
            best_ckpt: str | None,
            num_epochs: int | None,
            whose: str,
    ) -> None:
        self.arguments = {'input_size': task.input_size, **arguments}
        self.best_ckpt, self.num_epochs = best_ckpt, num_epochs
        self._best_seen = _stamp(best_ckpt)
        if 'folder' not in arguments:
            raise SFTeacherError(f'{whose}, `export`: `folder` is missing, got {", ".join(arguments)}')
        try:
            task.check_export(**self.arguments)
        except (SFTeacherError, TypeError) as error:      # the latter for an argument that export does not have
            raise SFTeacherError(f'{whose}, `export`: {error}') from error
        self.arguments['metadata'] = {**metadata, **(self.arguments.get('metadata') or {})}

    def after_epoch(self, teacher: nn.Module, epoch: int) -> None:
        """Export the teacher if this epoch's is due."""
        if not self._is_due(epoch):
            return
        folder = sf_teacher.export(teacher, **self.arguments)
        self.arguments['overwrite'] = True    # from now on it is this run's own
        logger.info(f'Exported the teacher of epoch {epoch} to {folder}')

    def _is_due(self, epoch: int) -> bool:
        if self.best_ckpt is None:
            return self.num_epochs is None or epoch == self.num_epochs
        seen, self._best_seen = self._best_seen, _stamp(self.best_ckpt)
        return self._best_seen != seen


def _stamp(path: str | None) -> tuple[int, int] | None:
    """What changes when a file is written again."""
    if path is None or not os.path.isfile(path):
        return None
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ino
