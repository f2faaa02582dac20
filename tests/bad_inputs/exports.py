"""Models, numbers and names that are given to `export`, and files to `load_checkpoint`."""
from functools import partial

import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher.exporting.checkpoint import load_checkpoint, read_file
from sf_teacher.exporting.exporter import check_export, export
from tests.exporting.folders import MEAN, SIZE, STD, Own
from tests.exporting.test_class_names import NAMES
from tests.helpers import build

from .row import Place, Row


def swap_stem(model):
    model.conv1[0] = nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False)


def swap_head(model):
    model.fc = nn.Linear(model.num_features, 3)


def swap_activation(model):
    model.layer3[0].act1 = nn.SiLU()


def swap_pooling(model):
    model.global_pool.pool = nn.AdaptiveMaxPool2d(1)


def edited(edit):
    model = build()
    edit(model)
    return model


def diverged():
    model = build()
    model.fc.bias.data[0] = float('nan')
    return model


def unmaterialised():
    with torch.device('meta'):
        return timm.create_model('test_resnet')


def unknown():
    model = build()
    model.pretrained_cfg['architecture'] = 'my_resnet'
    return model


class Pair(Own):
    def forward(self, x):
        return super().forward(x), x


REPLACED = r'logits differ by up to .*replaced after it was built; pass factory='
TINY = {'input_size': (3, 8, 8), 'mean': MEAN, 'std': STD}
MODELS = {
    'another stem': (partial(edited, swap_stem),
                     r'conv1\.0\.weight is \(16, 3, 5, 5\), not \(16, 3, 3, 3\).*pass factory='),
    'another head': (partial(edited, swap_head), r'fc\.weight is \(3, \d+\), not \(7, \d+\).*pass factory='),
    'another activation': (partial(edited, swap_activation), REPLACED),
    'another pooling': (partial(edited, swap_pooling), REPLACED),
    'a model of the user': (Own, 'Own is not a model that timm builds by name.*pass factory='),
    'an unknown name': (unknown, 'my_resnet is not a model that timm builds by name'),
    'features only': (lambda: timm.create_model('test_resnet', features_only=True), 'no classifier.*features_only'),
    'no head': (lambda: build(num_classes=0), 'no classifier.*reset_classifier'),
    'a class as an argument': (lambda: build(act_layer=nn.SiLU),
                               "'act_layer' is not serializable|model_args must consist of"),
    'diverged': (diverged, 'logits of test_resnet are not finite'),
    'the meta device': (unmaterialised, 'conv1.0.weight is on the meta device'),
    'two sizes': (build, r'input_size must be \(channels, .*got \[64, 64\]', {'input_size': (64, 64)}),
    'other channels': (build, 'Requested 1 input channels, but the model accepts 3', {'input_size': (1, 64, 64)}),
    'a fixed size': (lambda: build('test_vit_relpos'), r'Requested image size \(64, 64\)', {'input_size': SIZE}),
    'two means': (build, 'mean must have one value or 3 values, got 2', {'mean': (0.5, 0.5)}),
    'num_classes': (build, 'num_classes=9 disagrees with the current', {'model_args': {'num_classes': 9}}),
    'an unknown argument': (build, 'nope=1, no argument that test_resnet.s', {'model_args': {'nope': 1}}),
    'metadata': (build, 'metadata must consist of.*this is an? object', {'metadata': {'data': object()}}),
    'a lambda': (Own, 'factory=.*cannot be imported by another process', {'factory': lambda: Own()}),
    'a factory in __main__': (Own, "factory='__main__:Own' cannot be imported", {'factory': '__main__:Own'}),
    'no size': (Own, 'does not say what it was trained on: pass input_size, mean, std', {'factory': 'm:f'}),
    'a model that does not run': (Own, r'Own does not run at input_size \(3, 8, 8\): RuntimeError',
                                  {'factory': 'm:f', **TINY}),
    'two outputs': (Pair, r'one tensor of logits \(N, num_classes=\?\), that of Pair is a tuple',
                    {'factory': 'm:f', 'input_size': (1, 8, 8), 'mean': (0.5,), 'std': (0.5,)}),
}
NUMBERS = [
    ({'std': 0}, r'std=0 must be numbers > 0, one or one per channel'),
    ({'std': (0.5, 0.5, 0.)}, r'std=\(0.5, 0.5, 0.0\) must be numbers > 0'),
    ({'std': -0.5}, r'std=-0.5 must be numbers > 0'),
    ({'std': float('nan')}, r'std=nan must be numbers > 0'),
    ({'std': float('inf')}, r'std=inf must be numbers > 0'),
    ({'mean': float('nan')}, r'mean=nan must be finite numbers'),
    ({'mean': (0., 0., float('-inf'))}, r'mean=\(0.0, 0.0, -inf\) must be finite numbers'),
    ({'mean': '0.5'}, r"mean='0.5' must be finite numbers"),
    ({'mean': ()}, r'mean=\(\) must be finite numbers'),
    ({'mean': ('a', 'b', 'c')}, r'must be finite numbers'),
    ({'mean': [[0.5], [0.5], [0.5]]}, r'must be finite numbers'),
    ({'mean': (0.5,) * 2}, r'mean must have one value or 3 values, got 2'),
    ({'std': (0.5,) * 4}, r'std must have one value or 3 values, got 4'),
    ({'input_size': (3, 64)}, r'three integers > 0; got \[3, 64\]'),
    ({'input_size': (3, 64, 0)}, r'three integers > 0'),
    ({'input_size': (3, 64, -64)}, r'three integers > 0'),
    ({'input_size': (3, 64., 64.)}, r'three integers > 0'),
    ({'input_size': 64}, r'three integers > 0; got 64'),
    ({'input_size': (3, 10 ** 6, 10 ** 6)}, r'3e\+12 values an image, of which 1.3e\+08 are the most'),
]
OWN = {'input_size': (3, 8, 8), 'mean': 0.5, 'std': 0.5, 'factory': 'own_models:Own'}
NAMES_GIVEN = [
    (NAMES[:6], 'there are 6 class_names and the teacher has 7 classes'),
    ([*NAMES[:5], 'cat', 'dog'], "class_names holds 'cat', 'dog' more than once"),
    (range(7), 'class_names must be one string a class'),
    ('abcdefg', "class_names must be one string a class, .*got 'abcdefg'"),
    ([*NAMES[:6], ''], 'class_names must be one string a class'),
    ({'cat'}, 'class_names must be one string a class, a list in the order of the logits'),
    (dict.fromkeys(NAMES, 0), 'class_names must be one string a class, a list in the order of the logits'),
]


class Foreign:
    pass


CONTENTS = [
    ('a class of the user', {'state_dict': {'weight': torch.ones(1)}, 'hyper_parameters': Foreign()},
     r'it holds more than tensors and plain values \(.*Foreign\).*save the weights alone'),
    ('a number', {'epoch': 3},
     r'holds no state_dict but a dict of epoch\. The weights may be there directly, or under'),
    ('a list', [torch.ones(1)], r'holds no state_dict but a list of nothing'),
]
FILES = {
    'text.pth': r'cannot be loaded: it is damaged, or no file of',
    'text.safetensors': r'cannot be loaded: it is damaged, or no file of',
    '.': r'is a folder\. If it is a sharded checkpoint, .*dcp_to_torch',
    'nowhere.pth': 'there is no checkpoint at',
}


def exported(given, model, message, kwargs, call=export):
    return Row(call.__name__, given, lambda place: call(model(), place.here / 'teacher', **kwargs), message)


def _load(path):
    load_checkpoint(build(), read_file(path), path)


def loaded(given, name, message, prepare):
    return Row('load_checkpoint', given, lambda place: _load(place.here / name), message,
               prepare=prepare)


def write_texts(place: Place):
    for name in ('text.pth', 'text.safetensors'):
        (place.here / name).write_text('text')


ROWS = [
    *(exported(given, model, message, kwargs[0] if kwargs else {}, call)
      for given, (model, message, *kwargs) in MODELS.items() for call in (export, check_export)
      if call is export or message != REPLACED),     # which the reloading finds
    exported('a task', partial(sf_teacher.wrap, 'test_resnet', method='teskd', num_classes=7),
             'export takes the plain model and this is a StudentFriendlyTask', {}, check_export),
    *(exported(f'{kwargs}', build, message, kwargs) for kwargs, message in NUMBERS),
    *(exported(f'{kwargs} with a factory', Own, message, OWN | kwargs) for kwargs, message in NUMBERS),
    *(exported(f'class_names={names}', build, message, {'class_names': names}, call)
      for names, message in NAMES_GIVEN for call in (export, check_export)),
    *(loaded(given, 'file.pth', message, lambda place, content=content: torch.save(content, place.here / 'file.pth'))
      for given, content, message in CONTENTS),
    *(loaded(name, name, message, write_texts) for name, message in FILES.items()),
]
