"""The example's modules, and its runner's small data set."""
import importlib
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from .tiny_run import BY_NAME, FOLDER, TINY


@pytest.fixture(scope='module')
def modules():
    """The modules of the example, imported as its scripts import them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name)
               for name in ('protocol', 'plan', 'images', 'nets', 'rivals', 'scheduler', 'tasks', 'worker', 'results',
                            'chosen', 'gains', 'regret', 'runs', 'tables', 'kinds')}
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A folder with a data set of five classes and a protocol that uses three of them."""
    folder = tmp_path_factory.mktemp('tiny')
    generator = np.random.default_rng(0)
    for split, count in (('train', 12), ('test', 4)):
        for label in range(5):
            (folder / 'data' / split / f'class{label}').mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 50 * label + 50, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / 'data' / split / f'class{label}' / f'{i}.png')
    (folder / 'tiny.yaml').write_text(yaml.safe_dump(TINY))
    (folder / 'by_name.yaml').write_text(yaml.safe_dump(BY_NAME))
    return folder
