"""The texts in an exported folder: the model card and the torchdistill snippet."""
import html
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from .torchvision_names import MAPPED

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

teacher = timm.create_model({local}, pretrained=True)
```

The model is plain timm: nothing else needs to be installed. **Keep `pretrained=True`: without it timm builds the same
architecture with random weights and says nothing.** `teacher.pth` holds the same weights under `"model"`, for tools
that want a checkpoint file (`torch.load(".../teacher.pth", weights_only=True)["model"]`).
"""

_FACTORY_USAGE = """\
timm cannot build this architecture by name; it is built by `{factory}`:

```python
import torch
from {module} import {function}

teacher = {call}({arguments})
teacher.load_state_dict(torch.load({file}, weights_only=True)["model"])
teacher.eval()
```
"""

_TORCHDISTILL = """\
# The teacher's block for a torchdistill configuration. This key returns the teacher in eval mode, so that its
# statistics stay as exported, and refuses a folder that is missing or has other classes. The path is relative to where
# torchdistill is started: change it to where the folder is.
dependencies:
  - name: 'sf_teacher.adapters.torchdistill'

models:
  teacher_model:
    key: 'sf_teacher.timm_teacher'  # {arch}
    kwargs:
      model_name: 'local-dir:{folder}'
      num_classes: {num_classes}
"""

_TORCHVISION = """
# Or without any dependency, as torchvision builds {what}: in an existing configuration only
# src_ckpt changes (and a `weights:` entry goes, it would download). torchdistill leaves this teacher in train mode, so
# its batch-norm statistics drift while the student trains, and a mistyped path gives random weights and one INFO line.
#
# models:
#   teacher_model:
#     key: '{arch}'
#     kwargs:
#       num_classes: {num_classes}
#     src_ckpt: '{folder}/{file}'
"""

_NO_TORCHVISION = """
# torchvision's keys do not apply: it builds no {arch} that takes this teacher's checkpoint{instead}.
"""


def portable_path(folder: Path) -> str:
    """A path that says nothing of this machine: below the working directory as it is, elsewhere the folder's name."""
    below = folder.is_relative_to(Path.cwd()) and folder != Path.cwd()
    return './' + (folder.relative_to(Path.cwd()).as_posix() if below else folder.name)


def torchdistill_snippet(arch: str, num_classes: int, folder: str, torchvision_file: str | None = None) -> str:
    """The YAML that makes an exported folder the teacher of a torchdistill configuration, and which paths apply.

    Args:
        arch: timm's name.
        num_classes: Classes.
        folder: The exported folder.
        torchvision_file: The checkpoint in it that torchvision's model of this name takes, if there is one.
    """
    values = dict(arch=arch, num_classes=num_classes, folder=folder.replace("'", "''"), file=torchvision_file)
    if torchvision_file is None:
        instead = '; exported with format="torchvision" (--format torchvision) there is one' if arch in MAPPED else ''
        return (_TORCHDISTILL + _NO_TORCHVISION).format(instead=instead, **values)
    what = 'the same model' if torchvision_file == 'teacher.pth' else 'it under other keys'
    return (_TORCHDISTILL + _TORCHVISION).format(what=what, **values)


def model_card(name: str, facts: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The README.md of an exported folder, with the Hugging Face Hub's front matter.

    Args:
        name: Name of the folder.
        facts: What the probe says of the teacher (see `export`).
        metadata: What the user says of its training.
    """
    built_by = facts['arch'] or facts['factory']
    front = ModelCardData(
        library_name='timm' if facts['arch'] else 'pytorch',
        pipeline_tag='image-classification',
        tags=['image-classification', 'knowledge-distillation', 'sf_teacher', *(['timm'] if facts['arch'] else [])],
    )
    description = metadata.get('description', f'A teacher ({built_by}) for knowledge distillation.')
    about = re.sub(r'^([#+-]|\d+[.)])', r'\\\1', _text(description))
    lines = ['---', front.to_yaml(), '---', f'# {_text(name)}', '', about]

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
        f'    sf-teacher verify {shlex.quote(name)}' + (f" --factory {facts['factory']}" if facts['factory'] else ''),
        '',
    ]
    return "\n".join(lines)


def _usage(name: str, facts: Mapping[str, Any]) -> str:
    if facts['arch']:
        return _TIMM_USAGE.format(local=json.dumps(f'local-dir:{name}', ensure_ascii=False))
    module, _, call = facts['factory'].partition(':')
    arguments = ', '.join(f'{key}={value!r}' for key, value in facts['model_args'].items())
    return _FACTORY_USAGE.format(
        factory=facts['factory'],
        module=module,
        function=call.partition('.')[0],
        call=call,
        arguments=arguments,
        file=json.dumps(f'{name}/teacher.pth', ensure_ascii=False),
    )


def _item(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f'- **{_text(key)}**:', *(f'  - {_text(inner)}: {_text(text)}' for inner, text in value.items())]
    return [f'- **{_text(key)}**: {_text(value)}']


def _text(value: Any) -> str:
    """A value as one line of text, in which nothing is markup."""
    text = ' '.join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r'[\\`*~|]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]', r'\\\g<0>', text)
    return html.escape(text, quote=False)
