"""The smallest classifier of each of timm's model modules. `python -m tests.families` writes families.json anew."""
import json
import logging
import sys
from pathlib import Path

import timm
import torch
from timm.models import model_entrypoint

FILE = Path(__file__).with_name('families.json')
FAMILIES: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}


def smallest_models() -> dict[str, str]:
    """Module -> architecture with the fewest parameters that has a classifier; built on meta, minutes for all."""
    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        module = model_entrypoint(name).__module__.rsplit('.', 1)[-1]
        with torch.device('meta'):
            model = timm.create_model(name)
        size = sum(p.numel() for p in model.parameters())
        if hasattr(model, 'get_classifier') and getattr(model, 'num_classes', 0) and not name.startswith('test_'):
            best[module] = min(best.get(module, (size, name)), (size, name))
    return {module: name for module, (_, name) in sorted(best.items())}


if __name__ == '__main__':
    logging.disable()
    families = smallest_models()
    FILE.write_text(json.dumps(families, indent=1) + '\n')
    sys.stdout.write(f'{len(families)} modules\n')
