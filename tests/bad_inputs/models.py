"""Models, and boundaries in them, that are given to `wrap`."""
from functools import partial

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import TwoTensor

import sf_teacher
from tests.split.own_models import SIZE, OnlyInTraining, Plain, net, tails_of

from .row import rows


class TwoOutputs(Plain):
    def forward(self, x):
        return super().forward(x), x


class Twice(Plain):
    def forward(self, x):
        x = self.relu(self.first(self.first(self.relu(self.stem(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(self.second(x), 1).flatten(1))


class Streams(Plain):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, x):
        a, b = self.pair(self.stem(x))
        return self.head(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))


class Pair(nn.Module):
    def forward(self, x):
        return x, x * 2


class Unused(Plain):
    def forward(self, x):
        self.second(self.stem(x))
        return self.head(x.mean((2, 3)).repeat(1, 6)[:, :16])


class Closure(Plain):
    """Its copies go on to compute with the weights of the model that they were made from."""

    def __init__(self):
        super().__init__()
        self.end = lambda x: self.head(self.second(x).mean((2, 3)))

    def forward(self, x):
        return self.end(self.first(self.stem(x)))


class UsesItsFront(Plain):
    """Computes with a weight of a module before the boundary, from outside of that module."""

    def forward(self, x):
        return super().forward(x) + self.stem.weight.mean().detach()


def with_hook():
    model = Plain()
    model.head.register_forward_hook(lambda module, args, output: output * 100 + 7)
    return model


def compiled_in_part():
    model = Plain()
    model.stem = torch.compile(model.stem, backend='eager')
    return model


class BFloat16Inside(Plain):
    def __init__(self):
        super().__init__()
        self.bfloat16().stem.float()

    def forward(self, x):
        x = self.first(self.stem(x).bfloat16())
        return self.head(nn.functional.adaptive_avg_pool2d(self.second(x), 1).flatten(1))


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.module, self.head = Plain(), nn.Linear(10, 10)


def quantised():
    return torch.ao.quantization.quantize_dynamic(Plain(), {nn.Linear}, torch.qint8)


def pruned():
    model = net()
    prune.l1_unstructured(model.fc, 'weight', 0.5)
    return model


def checkpointed():
    model = net()
    model.set_grad_checkpointing(True)
    return model


def in_inference_mode(build):
    with torch.inference_mode():
        return build()


def of_two_tensors():
    model = net()
    model.fc.weight = nn.Parameter(TwoTensor(model.fc.weight.data, model.fc.weight.data), requires_grad=False)
    return model


MODELS = {
    'pruned student': (lambda: sf_teacher.wrap('test_resnet', pruned(), num_classes=10, input_size=SIZE),
                       r'ResNet cannot be copied .*prune.remove'),
    'classes of a module': (lambda: sf_teacher.wrap(Plain(), net(), boundaries=['stem'], num_classes=12,
                                                    input_size=SIZE),
                            'teacher Plain gives 10 logits, not num_classes=12: leave num_classes out'),
    'unknown teacher': (lambda: sf_teacher.wrap('resnet5O', 'resnet18'),
                        r"timm has no model 'resnet5O' \(given as teacher\); like it: .*resnet50"),
    'unknown student': (lambda: sf_teacher.wrap(net(), 'resent18', input_size=SIZE), "no model 'resent18'.*student"),
    'nonsense name': (lambda: sf_teacher.wrap('', 'resnet18'), "timm has no model ''"),
    'bad kwargs': (lambda: sf_teacher.wrap('test_resnet', 'test_resnet', teacher_kwargs={'depth': 3}),
                   "could not build the teacher 'test_resnet' with .*depth"),
    'kwargs for a module': (lambda: sf_teacher.wrap(net(), 'test_resnet', pretrained=True), 'given by name'),
    'missing folder': (lambda: sf_teacher.wrap('local-dir:/nowhere', 'test_resnet'), 'config.json cannot be read'),
    'input size': (lambda: sf_teacher.wrap(net(), net(), input_size=(32, 32)), r'three integers > 0; got \(32, 32\)'),
    'not a model': (lambda: sf_teacher.wrap(3, 'test_resnet'),
                    'teacher must be a torch.nn.Module, or, for sf_teacher.wrap, a timm name; not int'),
    'a name in the task': (lambda: sf_teacher.StudentFriendlyTask('test_resnet'), "a timm name; not 'test_resnet'"),
    'a student by name in the task': (lambda: sf_teacher.StudentFriendlyTask(net(), students='test_resnet'),
                                      "student must be a torch.nn.Module.* not 'test_resnet'"),
    'student_kwargs without a name': (lambda: sf_teacher.wrap(net(), net(), student_kwargs={'drop_rate': 0.1}),
                                      "student_kwargs={'drop_rate': 0.1} are for students given by name"),
    'text for a bool': (lambda: sf_teacher.SFTN(detach_teacher_logits='false'),
                        "detach_teacher_logits='false'.*must be True or False"),
    'number for a bool': (lambda: sf_teacher.GTN(require_sharing=1), 'require_sharing must be True or False'),
    'no pair': (lambda: sf_teacher.wrap(net(), net(), boundaries=[(1, 2, 3)], input_size=SIZE),
                r'boundaries: \(1, 2, 3\) is not a pair'),
    'ambiguous path': (lambda: sf_teacher.wrap(net('test_vit', img_size=32), net('test_vit', img_size=32),
                                               boundaries=['blocks.1.mlp'], input_size=SIZE),
                       r'several boundaries of the student go as well with blocks.1.mlp: name pairs'),
    'no student': (lambda: sf_teacher.wrap(net(), input_size=SIZE), 'SFTN needs a student'),
    'empty students': (lambda: sf_teacher.wrap(net(), [], input_size=SIZE), 'SFTN needs a student'),
    'unknown method': (lambda: sf_teacher.wrap(net(), 'test_resnet', method='stfn'), "unknown method 'stfn'.*'sftn'"),
    'negative weight': (lambda: sf_teacher.SFTN(kl_weight=-1.), r'SFTN\(kl_weight=-1.0\).*finite number >= 0'),
    'nan weight': (lambda: sf_teacher.SFTN(ce_weight=float('nan')), 'ce_weight must be a finite number'),
    'text weight': (lambda: sf_teacher.SFTN(ce_weight='1'), "ce_weight='1'"),
    'temperature 0': (lambda: sf_teacher.SFTN(temperature=0), 'temperature must be a finite number > 0'),
    'direction': (lambda: sf_teacher.SFTN(kl_direction='both'), 'kl_direction must be one of'),
    'reduction': (lambda: sf_teacher.SFTN(reduction='none'), 'reduction must be one of mean, sum'),
    'transform act': (lambda: sf_teacher.SFTN(transform_act='gelu'), 'transform_act must be one of auto, relu, none'),
    'class counts': (lambda: sf_teacher.wrap(net(), net(num_classes=7), input_size=SIZE),
                     'student ResNet has 7 classes and the teacher 10'),
    'num_classes of a module': (lambda: sf_teacher.wrap(net(), 'test_resnet', num_classes=7, input_size=SIZE),
                                'has 10 classes, not num_classes=7'),
    'one class': (lambda: sf_teacher.wrap('test_resnet', 'test_resnet', num_classes=1, input_size=SIZE),
                  'teacher ResNet gives 1 logit, and a softmax of one is always 1: .*num_classes=K, at least 2'),
    'one class, no branches': (lambda: sf_teacher.wrap(net(num_classes=1), method='mcmi', input_size=SIZE),
                               'teacher ResNet gives 1 logit'),
    'num_classes 0': (lambda: sf_teacher.wrap(net(num_classes=0), net(), input_size=SIZE), 'num_classes=0 and gives'),
    'features only': (lambda: sf_teacher.wrap(net(features_only=True), net(), input_size=SIZE), 'features_only=True'),
    'encoder': (lambda: sf_teacher.wrap(net('qwen3_vit_88m_enc'), net(), input_size=SIZE),
                'is an encoder without a classifier'),
    'scripted': (lambda: sf_teacher.wrap(torch.jit.script(nn.Conv2d(3, 3, 1)), net(), input_size=SIZE), 'is scripted'),
    'quantised': (lambda: sf_teacher.wrap(quantised(), net(), input_size=SIZE), 'is quantised'),
    'compiled': (lambda: sf_teacher.wrap(torch.compile(net()), net(), input_size=SIZE), 'already wrapped'),
    'data parallel': (lambda: sf_teacher.wrap(nn.DataParallel(net()), net(), input_size=SIZE), 'already wrapped'),
    'a student that is a closure': (lambda: sf_teacher.wrap(net(), Closure(), boundaries=[(1, 'first')],
                                                            input_size=SIZE),
                                    r'copy of Closure computes with weights .* \(second.weight, .*Make that a method'),
    'a student with a hook': (lambda: sf_teacher.wrap(net(), with_hook(), boundaries=[(1, 'second')], input_size=SIZE),
                              r"hooks of Plain \(at 'head'\) change its logits.*Remove them \(handle.remove"),
    'a student that uses its front': (lambda: sf_teacher.wrap(net(), UsesItsFront(), boundaries=[(1, 'second')],
                                                              input_size=SIZE),
                                      r"has no attribute 'mean'\).* reads there what a module before the boundary"),
    'compiled in part': (lambda: sf_teacher.wrap(net(), compiled_in_part(), boundaries=[(1, 'first')],
                                                 input_size=SIZE),
                         r'student Plain is compiled in part.*plain stem \(student.stem._orig_mod'),
    'two dtypes': (lambda: sf_teacher.wrap(BFloat16Inside(), net(), boundaries=[('first', 1)], input_size=SIZE),
                   r"'first' of BFloat16Inside cannot .* it is torch.bfloat16, and branches are torch.float32"),
    'a part called module': (lambda: sf_teacher.wrap(Around(), net(), input_size=SIZE),
                             'teacher Around has an attribute `module`.*call this part otherwise, e.g. `net`'),
    'a student with a part called module': (lambda: sf_teacher.wrap(net(), Around(), input_size=SIZE),
                                            'student Around has an attribute `module`'),
    'averaged': (lambda: sf_teacher.wrap(ModelEmaV3(net()), net(), input_size=SIZE), 'a wrapper, pass model.module'),
    'a task': (lambda: sf_teacher.wrap(sf_teacher.wrap(net(), net(), input_size=SIZE), net()), 'is a task already'),
    'no parameters': (lambda: sf_teacher.wrap(nn.Flatten(), net(), input_size=SIZE), 'has no parameters'),
    'size unknown': (lambda: sf_teacher.wrap(Plain(), net()), 'image size that Plain was made for is not known'),
    'module without boundaries': (lambda: sf_teacher.wrap(Plain(), net(), input_size=SIZE),
                                  'Plain is not a timm model.*It has stem, relu, first, second, head'),
    'module student without boundaries': (lambda: sf_teacher.wrap(net(), Plain(), input_size=SIZE),
                                          'student Plain is not a timm model'),
    'teacher boundary unknown': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=['layer7']),
                                 "ResNet has no module 'layer7': it has conv1"),
    'teacher index out of range': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[9]),
                                   r'teacher ResNet has no boundary 9: it has 0 \(act1\), 1 \(layer1\)'),
    'student index out of range': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[(1, 9)]),
                                   'student ResNet has no boundary 9'),
    'student boundary unknown': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE,
                                                         boundaries=[('layer1', 'layer1.7')]),
                                 r"no module 'layer1.7': layer1 has 0"),
    'inside a residual block': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE,
                                                        boundaries=[('layer2', 'layer2.0.conv1')]),
                                "'layer2.0.conv1' of ResNet cannot be a boundary: the image also reaches the logits"),
    'a boundary that is not a list': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries='layer1'),
                                   r"boundaries='layer1' must be a list of names, .*give boundaries=\['layer1'\]"),
    'boundaries by name': (
        lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries={'layer1': 'layer2'}),
        r"boundaries=\{'layer1': 'layer2'\} must be a list .*give boundaries=\[\('layer1', 'layer2'\)\]"),
    'boundaries as a tensor': (
        lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=torch.tensor([1, 2])),
        r"boundaries=tensor\(\[1, 2\]\) must be a list .*give boundaries=\['layer1', 'layer2'\]"),
    'a boundary that is a truth value': (
        lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[True]), 'True is neither a name, an index'),
    'no boundaries': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[]), 'leaves nothing to'),
    'a pair twice': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[(1, 1), (1, 1)]),
                     'pairs layer1-layer1 more than once'),
    'a boundary twice': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[1, 2, 1]),
                         '`boundaries` names layer1 more than once'),
    'pairs without a student': (lambda: sf_teacher.wrap(net(), method='teskd', input_size=SIZE,
                                                        boundaries=[(1, 1), (2, 2)]),
                                'names boundaries of a student, and there is none'),
    'patches in the batch': (lambda: sf_teacher.wrap(net('mobilevit_xxs'), net(), input_size=(3, 256, 256),
                                                     boundaries=[('stages.2.1.transformer.0', 'layer2')]),
                             r'cannot be a teacher boundary: for one image it returns \(4, 256, .*, patches folded'),
    'wrong tag': (lambda: sf_teacher.wrap('test_resnet.nonsense', net(), input_size=SIZE), 'Invalid pretrained tag'),
    'pairs mixed': (lambda: sf_teacher.wrap(net(), net(), input_size=SIZE, boundaries=[1, (2, 2)]), 'mixes pairs'),
    'called twice': (lambda: sf_teacher.wrap(net(), Twice(), input_size=SIZE, boundaries=[('layer2', 'first')]),
                     "'first' is called 2 times in one forward"),
    'teacher called twice': (lambda: sf_teacher.wrap(Twice(), net(), input_size=SIZE, boundaries=[('first', 1)]),
                             "'first' of Twice cannot be a teacher boundary: it is called 2 times"),
    'never called': (lambda: tails_of(Streams(), ['first']), "'first' is called 0 times"),
    'unused': (lambda: tails_of(Unused(), ['second']), "the image also reaches the logits around it"),
    'several tensors': (lambda: sf_teacher.wrap(Streams(), net(), input_size=SIZE, boundaries=[('pair', 1)]),
                        "'pair' of Streams cannot be a teacher boundary: it returns 2 tensors"),
    'several logits': (lambda: sf_teacher.wrap(TwoOutputs(), net(), input_size=SIZE, boundaries=[('second', 1)]),
                       'must return logits .* one tensor; it returns tuple'),
    'teacher of another size': (lambda: sf_teacher.wrap(net('vit_tiny_patch16_224'), net(), input_size=SIZE),
                                r'does not run on one image of input_size=\(3, 32, 32\).*'
                                 r'img_size or in_chans in teacher_kwargs'),
    'student of another size': (lambda: sf_teacher.wrap(net(), net('vit_tiny_patch16_224'), input_size=SIZE),
                                r'VisionTransformer does not run on one image of input_size=\(3, 32, 32\)'),
    'wrong channels': (lambda: sf_teacher.wrap(net(in_chans=1), net(), input_size=SIZE), 'does not run on one image'),
    'checkpointed student': (lambda: sf_teacher.wrap(net(), checkpointed(), input_size=SIZE), 'gradient checkpointing'),
    'no image model': (lambda: sf_teacher.wrap(nn.Linear(4, 10), net(), input_size=SIZE, boundaries=[('x', 1)]),
                       "Linear has no module 'x': it has no submodules"),
    'teacher in inference mode': (lambda: sf_teacher.wrap(in_inference_mode(net), net()),
        r'built, or is used now, in torch.inference_mode\(\)'),
    'student in inference mode': (lambda: sf_teacher.wrap(net(), in_inference_mode(net)),
        r'student ResNet .* in torch.inference_mode\(\)'),
    'names in inference mode': (lambda: in_inference_mode(lambda: sf_teacher.wrap('test_resnet', 'test_resnet')),
        r'in torch.inference_mode\(\)'),
    'teacher of two tensors': (lambda: sf_teacher.wrap(of_two_tensors(), net()),
        r'fc.weight is TwoTensor, not a plain tensor \(quantised'),
    'student of two tensors': (lambda: sf_teacher.wrap(net(), of_two_tensors()),
        r'student ResNet .* fc.weight is TwoTensor'),
    'lazy modules': (lambda: sf_teacher.wrap(nn.Sequential(nn.LazyConv2d(3, 3)), net()),
        r'lazy modules: 0.weight has no shape yet'),
    'a folder with NUL': (lambda: sf_teacher.wrap('local-dir:\0', 'test_resnet'),
        r"'local-dir:\\x00' \(given as teacher\) is not the name"),
    'a very long name': (lambda: sf_teacher.wrap('test_resnet', 'r' * 10 ** 5),
        r"'r{30,40}\.\.\.r{30,40}' \(given as student\) is not"),
    'a very long boundary': (lambda: sf_teacher.wrap(net(), net(), boundaries=['x' * 10 ** 5]),
        r"no module 'x{30,40}\.\.\.x{30,40}': it has"),
    'a boundary with NUL': (lambda: sf_teacher.wrap(net(), net(), boundaries=['la\0yer']),
        r"no module 'la\\x00yer': it has"),
}


def in_training(returned):
    """A model whose output in train mode is something else."""
    model = OnlyInTraining()
    model.returned = returned
    return model


OUTPUTS = {
    'a tuple': (lambda z: (z, z), 'tuple'), 'a dict': (lambda z: {'out': z, 'aux': z}, 'dict'),
    'a list': (lambda z: [z, z], 'list'), 'one column': (lambda z: z[:, 0], r'\(2,\)'),
}
IN_TRAINING = {
    f'a {role} that gives {given} in train mode': (
        partial(wrap, returned),
        rf'OnlyInTraining must return logits \[B, K\], one tensor; it returns {found} in train')
    for given, (returned, found) in OUTPUTS.items()
    for role, wrap in (
        ('teacher', lambda returned: sf_teacher.wrap(
            in_training(returned), net(), boundaries=[('second', 'layer1')], input_size=SIZE)),
        ('student', lambda returned: sf_teacher.wrap(
            net(), in_training(returned), boundaries=[('layer1', 'second')], input_size=SIZE)))
}
ROWS = [*rows('wrap', MODELS), *rows('wrap', IN_TRAINING)]
