"""Write docs/families.md: every timm module as teacher and as student, and how real models pair by default.

`python docs/make_families.py` runs on every module what tests/split/test_families.py runs on a share: exact teacher
logits, exact tails at batch sizes 1, 2, 3 in eval and train mode, parameters, gradients, one training step. About ten
minutes on two cores, up to 12 GiB. `python docs/make_families.py pairing` writes only the second part anew, in two.
"""
import functools
import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from sf_teacher.factory import create_model
from sf_teacher.split.boundaries import Boundary, default_input_size
from sf_teacher.split.pairing import default_boundaries, pair_boundaries
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.teacher_taps import teacher_boundaries
from tests.split.families import FAMILIES, build_small
from tests.split.family_checks import check_student, check_teacher

HEAD = '''\
# Supported architectures

Written by `python docs/make_families.py` (timm {timm}, torch {torch}, CPU). For each of timm's {count} model modules,
the smallest architecture with a classifier, at the smallest image size that it admits:

- **teacher**: logits with branches equal those without (`torch.equal`, eval and train mode), gradients everywhere.
- **student**: every boundary's tail on the student's own features equals the student's logits (`torch.equal`, batch
  sizes 1, 2, 3; train mode within 1e-4 with the same random state), owns exactly the parameters behind the boundary,
  and trains. "Boundaries" counts those at which it can be split, of timm's features; `boundaries=` admits any other
  module path through which everything passes. Features of one module (several streams) are one boundary.

{teachers} of {count} work as teacher, {students} of {count} as student.

| module | architecture | input | teacher | student | boundaries | default boundaries of the student |
|---|---|---|---|---|---|---|
'''


PAIRING = '''\
## Default pairing of real models

Teachers of usual size, at the image size that they were made for, with three students: which boundaries `wrap` pairs,
and the height of their maps. The second table is the other way round: usual students with one teacher of each kind.

'''
TEACHERS = [
    'resnet50', 'resnet152d', 'resnext101_32x8d', 'wide_resnet50_2', 'seresnet50', 'ecaresnet101d', 'resnest50d',
    'res2net50_26w_4s', 'resnetv2_50', 'resnetrs101', 'skresnet50', 'senet154', 'legacy_senet154', 'densenet201',
    'dpn92', 'dla102', 'inception_v3', 'inception_v4', 'xception41', 'vgg16_bn', 'repvgg_b1', 'mobileone_s4',
    'regnety_080', 'regnetx_032', 'efficientnet_b4', 'tf_efficientnetv2_s', 'mobilenetv3_large_100',
    'mobilenetv4_conv_medium', 'mnasnet_100', 'ghostnet_130', 'lcnet_100', 'rexnet_150', 'hrnet_w32', 'cspresnet50',
    'cs3darknet_m', 'hgnetv2_b4', 'nfnet_f0', 'eca_nfnet_l0', 'vovnet39a', 'selecsls60b', 'convnext_small',
    'convnextv2_base', 'convmixer_768_32', 'repghostnet_150', 'fastvit_sa24', 'repvit_m1_5', 'efficientformer_l3',
    'efficientformerv2_l', 'edgenext_base', 'inception_next_small', 'poolformer_s24', 'caformer_s18',
    'focalnet_small_srf', 'mambaout_small', 'rdnet_small', 'starnet_s4', 'mobilevitv2_100',
    'swin_small_patch4_window7_224', 'swinv2_cr_small_224', 'swinv2_tiny_window8_256', 'twins_svt_base',
    'pvt_v2_b2', 'nest_small', 'coatnet_1_rw_224', 'maxvit_small_tf_224', 'gcvit_small', 'davit_small',
    'hiera_base_224', 'mvitv2_small', 'tiny_vit_21m_224', 'xcit_small_12_p16_224', 'pit_s_224', 'levit_128',
    'levit_256', 'efficientvit_b2', 'efficientvit_m4', 'nextvit_base', 'volo_d1_224', 'crossvit_18_240',
    'coat_small', 'sequencer2d_s', 'vit_base_patch16_224', 'vit_small_patch16_dinov3', 'deit3_small_patch16_224',
    'deit_base_distilled_patch16_224', 'beitv2_base_patch16_224', 'eva02_small_patch14_224', 'cait_s24_224',
    'convit_small', 'tnt_s_patch16_224', 'mixer_b16_224', 'gmlp_s16_224', 'resmlp_24_224', 'visformer_small',
]
STUDENTS = [
    'resnet18', 'resnet34', 'mobilenetv2_100', 'mobilenetv3_small_100', 'mobilenetv3_large_100',
    'mobilenetv4_conv_small', 'efficientnet_b0', 'efficientnet_lite0', 'ghostnet_100',
    'regnety_008', 'mnasnet_100', 'lcnet_100', 'repvgg_a0', 'mobileone_s1', 'convnext_atto', 'convnextv2_femto',
    'edgenext_x_small', 'mobilevit_s', 'mobilevitv2_075', 'fastvit_t8', 'repvit_m1_0', 'efficientformer_l1',
    'efficientvit_b0', 'efficientvit_m2', 'levit_128s', 'pit_ti_224', 'swin_tiny_patch4_window7_224',
    'tiny_vit_5m_224', 'starnet_s1', 'deit_tiny_patch16_224', 'vit_small_patch16_224', 'xcit_nano_12_p16_224',
]


def built(name: str, size: tuple[int, int, int] | None = None) -> torch.nn.Module:
    return create_model(name, 'teacher', 10, size, {'pretrained': False})


def pairs(teacher: list[Boundary], student: list[Boundary]) -> str:
    return ', '.join(f'`{t.name}` {t.size[0]} → `{s.name}` {s.size[0]}' for t, s in pair_boundaries(
        default_boundaries(teacher), default_boundaries(student), every=False))


@functools.cache
def boundaries_of(name: str, role: str, size: tuple[int, int, int] | None = None) -> list[Boundary]:
    if role == 'teacher':
        with torch.device('meta'):
            try:
                return teacher_boundaries(model := built(name, size), size or default_input_size(model))[0]
            except Exception:   # not on meta
                pass
        return teacher_boundaries(model := built(name, size), size or default_input_size(model))[0]
    return student_boundaries(model := built(name, size), size or default_input_size(model))[0]


def pairing_row(names: tuple[str, str]) -> str:
    """A row of the table for a teacher and, where that is not empty, a student."""
    logging.disable()
    torch.set_num_threads(1)
    teacher, student = names
    if student:
        size = default_input_size(model := built(student))
        found = student_boundaries(model, size)[0]
        return f'| {student} | {size[1]} | ' + ' | '.join(pairs(boundaries_of(t, 'teacher', size), found) for t in (
            'resnet50', 'swin_small_patch4_window7_224', 'vit_base_patch16_224')) + ' |'
    with torch.device('meta'):
        size = default_input_size(built(teacher))
    found = boundaries_of(teacher, 'teacher')
    return f'| {teacher} | {size[1]} | ' + ' | '.join(pairs(found, boundaries_of(s, 'student', size)) for s in (
        'resnet18', 'mobilenetv3_large_100', 'deit_tiny_patch16_224')) + ' |'


def pairing(pool: ProcessPoolExecutor) -> str:
    available = set(timm.list_models())
    text = PAIRING
    for head, names in (
            ('| teacher | image | resnet18 | mobilenetv3_large_100 | deit_tiny_patch16_224 |',
             [(name, '') for name in TEACHERS if name in available]),
            ('| student | image | resnet50 | swin_small_patch4_window7_224 | vit_base_patch16_224 |',
             [('', name) for name in STUDENTS if name in available])):
        text += '\n'.join([head, '|---|---|---|---|---|', *pool.map(pairing_row, names)]) + '\n\n'
    return text.rstrip() + '\n'


def row(module: str) -> tuple[str, bool, bool]:
    logging.disable()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, works, boundaries, chosen = FAMILIES[module], {}, [], []
    model, size = build_small(name)
    features = len(getattr(model.feature_info, 'info', model.feature_info))
    try:
        check_teacher(model, size)
        works['teacher'] = 'yes'
    except Exception as error:
        works['teacher'] = f'no: {error}'.split('\n')[0]
    try:
        boundaries, chosen = check_student(model, size)
        works['student'] = 'yes'
    except Exception as error:
        works['student'] = f'no: {error}'.split('\n')[0]
    cells = [module, name, f'{size[1]} px', works['teacher'], works['student'], f'{len(boundaries)} of {features}',
             ', '.join(f'`{b.name}`' for b in chosen)]
    return f'| {" | ".join(cells)} |', works['teacher'] == 'yes', works['student'] == 'yes'


def main(*parts: str) -> None:
    file = Path(__file__).with_name('families.md')
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        if 'pairing' in parts:
            support = file.read_text().split(PAIRING.split('\n')[0])[0].rstrip()
        else:
            rows = list(pool.map(row, sorted(FAMILIES)))
            support = HEAD.format(timm=timm.__version__, torch=torch.__version__.split('+')[0], count=len(rows),
                                  teachers=sum(t for _, t, _ in rows), students=sum(s for _, _, s in rows))
            support += '\n'.join(line for line, _, _ in rows)
        file.write_text(f'{support}\n\n{pairing(pool)}')


if __name__ == '__main__':
    main(*sys.argv[1:])
