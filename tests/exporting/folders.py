"""Exported folders: what the tests export, how they look at it, and how somebody edits it."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import nn

from sf_teacher.exporting import reload

MEAN, STD, SIZE = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (3, 64, 64)
METADATA = {
    'method': {'name': 'sftn', 'weight': 0.5},
    'students': ['test_efficientnet'],
    'data': 'digits',
    'seed': 3,
    'metrics': {'top1': 0.875},
}


class Own(nn.Module):
    """A model that timm cannot build."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of 5 classes."""
        return self.fc(self.conv(x).relu().mean((2, 3)))


def logits_of(model: nn.Module, size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    """What a model gives for two images that are always the same."""
    with torch.inference_mode():
        return model.eval()(torch.randn(2, *size, generator=torch.Generator().manual_seed(5)))


def load(folder: Path) -> nn.Module:
    """An exported teacher, by timm alone."""
    return timm.create_model(f'local-dir:{folder}', pretrained=True)


def listed(path: Path) -> list[str]:
    """The names in a folder."""
    return sorted(entry.name for entry in path.iterdir())


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
