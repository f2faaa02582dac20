"""Exported folders that somebody edits."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from sf_teacher.exporting import reload


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> bool:
    """Let `change` edit config.json; whether it did."""
    text = (folder / 'config.json').read_text()
    config = json.loads(text)
    change(config)
    (folder / 'config.json').write_text(json.dumps(config))
    return config != json.loads(text)


def edit_probe(
        folder: Path,
        change: Callable[[dict[str, Any]], object] = lambda facts: None,
        consistent: bool = True,
        **tensors: Any,
) -> None:
    """Let `change` edit what the probe says, and replace its tensors.

    With `consistent` its record of the files is made anew first, as somebody does who wants a changed folder to pass.
    """
    with safetensors.safe_open(folder / 'probe.safetensors', 'pt') as file:
        facts = json.loads(file.metadata()['sf_teacher'])
        tensors = {name: file.get_tensor(name) for name in ('inputs', 'logits')} | tensors
    if consistent:
        facts['sha256'] = {name: reload.sha256(folder / name) for name in facts['sha256']}
        facts['config'] = json.loads((folder / 'config.json').read_text())
        facts['config'].pop('sf_teacher', None)
    change(facts)
    safetensors.torch.save_file(tensors, folder / 'probe.safetensors', {'sf_teacher': json.dumps(facts)})
