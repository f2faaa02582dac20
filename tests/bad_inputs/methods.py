"""Methods, their settings and what is given to them; the simplifier's in the last part."""
import math
from functools import partial

import timm
import torch
from torch import nn

import sf_teacher
from sf_teacher import GTN, SFTN, TESKD, Method
from sf_teacher.kd_task import StudentFriendlyKDTask
from sf_teacher.methods import METHODS, get_method, make_method, register_method
from sf_teacher.methods._simplifier import Simplifier
from sf_teacher.methods.aid import AID
from sf_teacher.methods.lot import LoT
from tests.methods import test_aid as aid
from tests.methods import test_gtn as gtn
from tests.methods import test_lot as lot
from tests.methods import test_skd as skd
from tests.methods import test_teskd as teskd
from tests.methods.test_methods import make
from tests.methods.test_registry import define

from .models import Closure, with_hook
from .row import rows

SETTINGS = {
    'TESKD width 0': (lambda: TESKD(width=0), r'TESKD\(width=0\): width must be a whole number >= 1 or None'),
    'TESKD width 1.5': (lambda: TESKD(width=1.5), r'TESKD\(width=1.5\): width must be a whole number'),
    'TESKD temperature 0': (lambda: TESKD(temperature=0.),
                            r'TESKD\(temperature=0.0\): temperature must be a finite number > 0'),
    'TESKD feature weight -1': (lambda: TESKD(feature_weight=-1.),
                                r'TESKD\(feature_weight=-1.0\): feature_weight must be a finite number >= 0'),
    'TESKD feature weight nan': (lambda: TESKD(feature_weight=math.nan), r'feature_weight must be a finite number'),
    'TESKD features alone': (lambda: TESKD(ce_weight=0., kl_weight=0.),
                             r'feature_weight must be 0 where ce_weight and kl_weight are'),
    'GTN sampler empty': (lambda: GTN(sampler=''), r"GTN\(sampler=''\): sampler must be one of uniform, learned"),
    'GTN sampler best': (lambda: GTN(sampler='best'), r"GTN\(sampler='best'\): sampler must be one of uniform, lea"),
    'GTN seed 0.5': (lambda: GTN(seed=0.5), r'GTN\(seed=0.5\): seed must be a whole number'),
    'GTN entropy weight -1': (lambda: GTN(entropy_weight=-1.), r'entropy_weight must be a finite number >= 0'),
    'SFTN reduction': (lambda: SFTN(reduction='max'), r"SFTN\(reduction='max'\): reduction must be one of mean, sum"),
    'SFTN ramp 2': (lambda: SFTN(kl_ramp=2.), r'kl_ramp=2.0\): kl_ramp must be a finite number >= 0 and <= 1'),
    'SFTN ramp without CE': (lambda: SFTN(kl_ramp=0.5, ce_weight=0.), r'kl_ramp must be 0 where ce_weight is'),
    **{f'{method.__name__} that trains no classifier, {options}': (
        partial(method, teacher_weight=0., **options),
        r'teacher_weight=0.0\): teacher_weight must be above 0 where kl_weight is 0 or detach_teacher_logits is set')
       for method in (SFTN, GTN) for options in ({}, dict(detach_teacher_logits=False, kl_weight=0.))},
    'AID of nothing': (lambda: AID(teacher_weight=0., kl_weight=0.),
                       'teacher_weight must be above 0 where kl_weight is 0'),
    'MCMI of nothing': (lambda: METHODS['mcmi'](teacher_weight=0., cmi_weight=0.),
                        'teacher_weight must be above 0 where cmi_weight is 0, as nothing else trains the teacher'),
    'SoTeacher of nothing': (lambda: METHODS['soteacher'](teacher_weight=0., lip_weight=0., consistency_weight=0.),
                             'teacher_weight must be above 0 where lip_weight and consistency_weight are 0'),
    'AID temperature 0': (lambda: AID(temperature=0), r'AID\(temperature=0\): temperature must be a finite number > 0'),
    'LoT temperature -1': (lambda: LoT(temperature=-1), r'LoT\(temperature=-1\): temperature must be a finite number'),
    'a setting misspelled': (lambda: make_method('sftn', {'kl_wieght': 1.}),
                             r"SFTN has no setting 'kl_wieght'; like it: kl_weight"),
    'a student method by name': (lambda: get_method('student_friendly_kd'),
                                 r"unknown method 'student_friendly_kd'.*: give one of 'aid', 'gtn'"),
    'a student method for a teacher': (lambda: get_method(METHODS['student_friendly_kd']()),
                                       r'acts in the training of the student, not of the teacher'),
    'a teacher method for a student': (lambda: get_method(METHODS['sftn'](), 'student'),
                                       r'SFTN acts in the training of the teacher, not of the student'),
}


def register(**attributes):
    register_method(define(**attributes))


def thawed():
    return type('Mine', (Method,), {'key': 'mine', '__dataclass_params__': type('P', (), {'frozen': False})})


OWN = {
    'no key': (register, r"Mine.key=None must be a name in lower case"),
    'a key with a blank': (partial(register, key='My Method'), r"Mine.key='My Method' must be a name in lower case"),
    'a key of ours': (partial(register, key='sftn'), r"the method name 'sftn' is taken by sf_teacher.methods.sftn"),
    'an unknown phase': (partial(register, key='mine', phase='both'),
                         r"Mine.phase='both' must be one of 'teacher', 'student'"),
    'no frozen dataclass': (lambda: register_method(thawed()),
                            r'Mine must be a frozen dataclass: put @dataclass\(froz'),
}
SEVEN = partial(timm.create_model, num_classes=7)
trained = partial(aid.model, 'test_resnet', 0)
aided = partial(sf_teacher.wrap, method='aid', input_size=aid.SIZE)
lotted = partial(sf_teacher.wrap, method='lot', input_size=lot.SIZE)
STUDENTS = {
    'SFTN without a student': (lambda: make('sftn'), r'SFTN needs a student'),
    'GTN without students': (lambda: make('gtn'), r'GTN needs a pool of students'),
    'GTN with an empty pool': (lambda: gtn.make([]), r'GTN needs a pool of students, timm names or modules: wrap\(teac'
                                                     r'her, \["resnet10t"'),
    'GTN and another number of classes': (lambda: make('gtn', [SEVEN('test_resnet')]),
                                          'has 7 classes and the teacher 10'),
    'GTN and another number in a pool': (lambda: gtn.make([SEVEN('resnet18')]),
                                         r'student ResNet has 7 classes and the teacher 10'),
    'GTN that must share, two families': (
        lambda: gtn.make(['resnet18', 'resnet26', 'resnet34'], GTN(require_sharing=True)),
        r'require_sharing=True, but students 1 \(ResNet\) can share weights with no other of the pool'),
    'GTN that must share, alone': (lambda: gtn.make(['resnet18'], GTN(require_sharing=True)),
                                   r'students 0 \(ResNet\) can share weights with no other'),
    'TESKD with a student': (lambda: make('teskd', 'test_resnet'),
                             r'TESKD takes no students, got ResNet: leave students out'),
    'TESKD with a student, by wrap': (lambda: sf_teacher.wrap('test_resnet', 'test_resnet', method='teskd'),
                                      r'TESKD takes no students, got ResNet: leave students out'),
    'TESKD with one boundary': (lambda: make('teskd', boundaries=['layer4']),
                                r'TESKD needs at least 2 stages of the teacher and has layer4'),
    'TESKD with one boundary by number': (lambda: teskd.make(boundaries=[4]), r'TESKD needs at least 2 stages of the '
                                                                              r'teacher and has layer4: name more'),
    'TESKD with an unknown boundary': (lambda: make('teskd', boundaries=['layer9', 'layer4']), r"no module 'layer9'"),
    'TESKD of a teacher with one stage': (
        lambda: teskd.make(timm.create_model('test_vit', num_classes=10, depth=1), input_size=(3, 160, 160)),
        r'TESKD needs at least 2 stages of the teacher and has blocks\.0'),
    'an unknown method': (lambda: make('skd', 'test_resnet'),
                          r"unknown method 'skd'.*: give one of 'aid', 'gtn', .*'teskd' or a co"),
    'AID without a student': (lambda: aided(trained()), r'AID needs one trained student, got 0: wrap\('),
    'AID with two students': (lambda: aided(trained(), [trained()] * 2), r'AID needs one trained student, got 2'),
    'AID and another number of classes': (lambda: aided(trained(), aid.model('test_resnet', 1, 7)),
        r'student ResNet has 7 classes and the teacher 5: .*, or give one that was trained on the same data'),
    'AID with a teacher by name': (lambda: aided('test_resnet', trained(), num_classes=5),
                                   r"AID needs a trained teacher, and 'test_resnet' would have random weights"),
    'AID and another size': (lambda: aided(trained(), timm.create_model('vit_tiny_patch16_224', num_classes=5)),
                             r'VisionTransformer does not run on one image of input_size=\(3, 32, 32\)'),
    'LoT without a student': (lambda: lotted(lot.model('test_resnet', 0)), r'LoT needs a student: wrap\('),
    'LoT and another number of classes': (lambda: lotted(lot.model('test_resnet', 0), lot.model('test_resnet', 1, 7)),
        r'student ResNet has 7 classes and the teacher 5: build both with the same num_classes'),
    'LoT with a frozen student': (
        lambda: lotted(lot.model('test_resnet', 0), lot.model('test_resnet', 1).requires_grad_(False)),
        r'student ResNet is frozen .*, and LoT trains its students: call student.requires_grad_\(\) first'),
    **{f'{method} with a student that {kind}': (
        lambda method=method, build=build: sf_teacher.wrap(
            timm.create_model('test_resnet', num_classes=10), build(), method=method, input_size=(3, 32, 32)), message)
       for method in ('lot', 'aid') for kind, build, message in (
           ('is a closure', Closure, r'a copy of Closure computes with weights that are not its own'),
           ('has a hook', with_hook, r"forward hooks of Plain \(at 'head'\) change its logits"))},
    'LoT with boundaries': (lambda: lotted(lot.model('test_resnet', 0), 'test_resnet', boundaries=['layer1']),
                            r'LoT attaches nothing at boundaries'),
}
SIMPLIFIER = {
    'no classes': (lambda: Simplifier(0), r'Simplifier\(num_classes=0\): num_classes must be a whole number > 0'),
    'dim 0': (lambda: Simplifier(10, dim=0), r'Simplifier\(dim=0\): dim must be a whole number > 0'),
    'temperature 0': (lambda: Simplifier(10, 0.),
                      r'Simplifier\(temperature=0.0\): temperature must be a finite number > 0'),
    'logits of other classes': (lambda: Simplifier(10)(torch.randn(2, 7)),
                                r"built for 10 classes; the teacher's logits are \[2, 7\], not \[B"),
    'a batch of one': (lambda: Simplifier(10)(torch.randn(1, 10)),
                       r'a batch of 1 in training: use a larger batch, and drop_last=True'),
    'a batch of one for the task': (lambda: skd.make().train()(*skd.batch(1)),
                                    r'the simplifier attends to the other images of the batch and got a ba'),
    'a teacher of other classes': (lambda: StudentFriendlyKDTask(skd.model(), SEVEN('test_resnet'), verbose=False),
        r'the teacher has 7 classes and the student 10: build both with the same num_classes'),
    'one of other classes': (lambda: skd.make(simplifier=Simplifier(7)),
                             r'num_classes=7.* does not fit a student of 10 classes and temperature=4'),
    'one of another temperature': (lambda: skd.make(simplifier=Simplifier(10, 2.)),
                                   r'temperature=2.* does not fit a student of 10 classes'),
}
BOX = {
    'a frozen simplifier': (lambda: skd.box_losses(skd.box(requires_grad=False)),
                            r'the simplifier is frozen and would not be trained: set `requires_g'),
    'another number of classes': (lambda: skd.box(num_classes=7),
                                  r'ResNet has 10 classes, num_classes=7: give the number that it has'),
    'an unknown number of classes': (lambda: skd.box(teacher=nn.Linear(2, 2)),
                                     r'Linear has an unknown number of classes, num_classes=None: give the numb'),
    'a file that is none': (lambda: skd.box(ckpt_file_path=__file__),
                            r'`ckpt_file_path`: .* does not hold this simplifier .* Delete the file'),
}
ROWS = [
    *rows('settings of a method', SETTINGS), *rows('register_method', OWN), *rows('wrap', STUDENTS),
    *rows('simplifier', SIMPLIFIER), *rows('Teacher4StudentFriendlyKD', BOX),
]
