"""The texts in an exported folder: the model card and the torchdistill snippet."""
import json
from collections.abc import Mapping
from typing import Any

_FIELDS = {  # the order of the card; whatever else the metadata holds follows
    'method': 'Method',
    'students': 'Students it was trained with',
    'data': 'Data',
    'seed': 'Seed',
    'metrics': 'Metrics',
}

_TIMM_USAGE = """\
```python
import timm

teacher = timm.create_model("local-dir:{name}", pretrained=True)
```

The model is plain timm: nothing else needs to be installed. **Keep `pretrained=True`: without it timm builds the same
architecture with random weights and says nothing.** `teacher.pth` holds the same weights under `"model"`, for tools
that want a checkpoint file (`torch.load("{name}/teacher.pth", weights_only=True)["model"]`).
"""

_FACTORY_USAGE = """\
timm cannot build this architecture by name; it is built by `{factory}`:

```python
import torch
from {module} import {function}

teacher = {call}({arguments})
teacher.load_state_dict(torch.load("{name}/teacher.pth", weights_only=True)["model"])
teacher.eval()
```
"""

_TORCHDISTILL = """\
# The teacher's block for a torchdistill configuration. Paths are relative to where torchdistill is started.
dependencies:
  - name: 'sf_teacher.adapters.torchdistill'

models:
  teacher_model:
    key: 'sf_teacher.timm_teacher'  # {arch}, returned in eval mode
    kwargs:
      model_name: 'local-dir:{folder}'
      num_classes: {num_classes}
"""


def torchdistill_snippet(arch: str, num_classes: int, folder: str) -> str:
    """The YAML that makes an exported folder the teacher of a torchdistill configuration."""
    return _TORCHDISTILL.format(arch=arch, num_classes=num_classes, folder=folder.replace("'", "''"))


def model_card(name: str, facts: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The README.md of an exported folder, with the Hugging Face Hub's front matter.

    Args:
        name: Name of the folder.
        facts: What the probe says of the teacher (see `export`).
        metadata: What the user says of its training.
    """
    built_by = facts['arch'] or facts['factory']
    front = {'library_name': 'timm' if facts['arch'] else 'pytorch', 'pipeline_tag': 'image-classification'}
    tags = ['image-classification', 'knowledge-distillation', 'sf_teacher', *(['timm'] if facts['arch'] else [])]
    lines = ['---', *(f'{key}: {value}' for key, value in front.items()), 'tags:', *(f'- {tag}' for tag in tags), '---']
    lines += [f'# {name}', '', str(metadata.get('description', f'A teacher ({built_by}) for knowledge distillation.'))]

    lines += ['', '## How it was trained', '']
    fields = {key: metadata.get(key, 'not recorded') for key in _FIELDS}
    fields |= {key: value for key, value in metadata.items() if key not in {*_FIELDS, 'description'}}
    for key, value in fields.items():
        lines += _item(_FIELDS.get(key, key), value)

    lines += ['', '## The model', '']
    for key in ('arch', 'factory', 'model_args', 'num_classes', 'input_size', 'mean', 'std'):
        if facts[key] is not None:
            lines += _item(key, facts[key])
    lines += _item('exported with', {'sf_teacher': facts['sf_teacher_version'], **facts['versions']})

    lines += ['', '## Use', '', _usage(name, facts)]
    lines += [
        "`probe.safetensors` holds a few inputs and this teacher's logits; this reloads the folder and compares them:",
        '',
        f'    sf-teacher verify {name}',
        '',
    ]
    return "\n".join(lines)


def _usage(name: str, facts: Mapping[str, Any]) -> str:
    if facts['arch']:
        return _TIMM_USAGE.format(name=name)
    module, _, call = facts['factory'].partition(':')
    arguments = ', '.join(f'{key}={value!r}' for key, value in facts['model_args'].items())
    return _FACTORY_USAGE.format(
        factory=facts['factory'],
        module=module,
        function=call.partition('.')[0],
        call=call,
        arguments=arguments,
        name=name,
    )


def _item(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f'- **{key}**:', *(f'  - {inner}: {_text(text)}' for inner, text in value.items())]
    return [f'- **{key}**: {_text(value)}']


def _text(value: Any) -> str:
    return ' '.join(value.split()) if isinstance(value, str) else json.dumps(value)
