"""The smallest classifier of each of timm's model modules; `python -m tests.split.families` writes families.json."""
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
            model = timm.create_model(name, num_classes=10)
        size = sum(p.numel() for p in model.parameters())
        if hasattr(model, 'get_classifier') and not name.startswith('test_'):
            best[module] = min(best.get(module, (size, name)), (size, name))
    return {module: name for module, (_, name) in sorted(best.items())}


def build_small(name: str) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    """The architecture with 10 classes at the smallest image size that it admits, with weights that show the image."""
    from sf_teacher.split.clones import calibrate_batch_norm, clone_model, perturbed_weights
    from sf_teacher.split.trace import dummy_image
    for size in (64, 96, 128, 160, 192, 224, 256, 384, 512):
        for kwargs in ({}, {'img_size': size}):
            try:
                with torch.device('meta'):
                    meta = timm.create_model(name, num_classes=10, **kwargs).eval()
                    meta(torch.empty(1, 3, size, size))
            except Exception:   # not at this size, or not on meta
                continue
            try:
                model = timm.create_model(name, num_classes=10, **kwargs)
                images = dummy_image(model, (3, size, size), batch=2)
                perturbed = clone_model(model, perturbed_weights(model, torch.float32))
                calibrate_batch_norm(perturbed, images)
                with torch.no_grad():
                    perturbed.forward_intermediates(images)
                model.load_state_dict(perturbed.state_dict())
                return model, (3, size, size)
            except Exception:
                continue
    model = timm.create_model(name, num_classes=10)
    return model, timm.data.resolve_model_data_config(model)['input_size']


if __name__ == '__main__':
    logging.disable()
    families = smallest_models()
    FILE.write_text(json.dumps(families, indent=1) + '\n')
    sys.stdout.write(f'{len(families)} modules\n')
