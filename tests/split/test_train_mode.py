"""Models that do something else in train mode, or for other images: what is known is used, the rest is refused."""
import pytest
import timm
import torch
import torchvision
from torch import nn

import sf_teacher
from sf_teacher import BoundaryError, SFTeacherError
from sf_teacher.checks import logits_of
from sf_teacher.split.split_points import student_boundaries
from sf_teacher.split.tapping import forward_with_maps
from sf_teacher.split.teacher_taps import teacher_boundaries
from sf_teacher.split.value_reads import value_reads
from tests.split.family_checks import check_step, check_tail, unchanged
from tests.split.own_models import SIZE, Plain, net


def distilled(name, **kwargs):
    model = net(name, **kwargs)
    model.set_distilled_training(True)
    return model


def googlenet():
    return torchvision.models.googlenet(num_classes=10, init_weights=False)


@pytest.mark.parametrize('build,size,boundaries', [
    (lambda: distilled('deit_tiny_distilled_patch16_224', depth=3, img_size=32), SIZE, None),
    (lambda: distilled('levit_128s'), (3, 224, 224), None),
    (googlenet, (3, 64, 64), ['inception3b', 'inception4a']),
], ids=['deit', 'levit', 'googlenet'])
def test_several_heads_in_train_mode(build, size, boundaries):
    pairs = [[('layer2', b) for b in boundaries], [(b, 'layer2') for b in boundaries]] if boundaries else [None, None]
    as_student, as_teacher, teacher, student = build(), build(), net(), net()
    with unchanged(as_student, as_teacher):
        tasks = [sf_teacher.wrap(teacher, as_student, boundaries=pairs[0], input_size=size),
                 sf_teacher.wrap(as_teacher, student, boundaries=pairs[1], input_size=size)]
    for task in tasks:
        images, labels = torch.randn(2, *size), torch.tensor([1, 2])
        losses = task.train()(images, labels)
        assert {z.shape for z in (losses['output'], *losses['branch_output'].values())} == {(2, 10)}
        losses['loss'].backward()
        assert all(p.grad is not None for p in task.branches.parameters())
    found, trace = student_boundaries(as_student, size, boundaries)
    for boundary in found[:1]:
        check_tail(as_student, boundary, trace, size)


def test_the_logits_of_two_distilled_heads_are_their_mean():
    model = distilled('deit_tiny_distilled_patch16_224', depth=1, img_size=32)
    with torch.no_grad():
        nn.init.normal_(model.head.weight), nn.init.normal_(model.head_dist.weight)
        x = torch.randn(2, *SIZE)
        pair = model.train()(x)
        assert isinstance(pair, tuple) and torch.equal(logits_of(model, pair), model.eval()(x))


@pytest.mark.parametrize('boundaries', [None, [('blocks.1', 'layer1')]], ids=['features', 'paths'])
def test_a_teacher_that_drops_tokens_is_refused(boundaries):
    with pytest.raises(SFTeacherError, match=r'in eval mode and .* in train mode.*patch_drop_rate=0'):
        sf_teacher.wrap(net('test_vit', patch_drop_rate=0.5), net(), boundaries=boundaries, input_size=(3, 160, 160))
    task = sf_teacher.wrap(net(), net('test_vit', patch_drop_rate=0.5), input_size=(3, 160, 160))
    check_step(task, (3, 160, 160))     # a student drops them before the boundary, if at all


class DropoutInPlace(Plain):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x):
        x = self.second(self.relu(self.stem(x)))
        return self.head(self.drop(x).mean((2, 3)))


def test_a_feature_that_is_modified_in_train_mode_only():
    model = DropoutInPlace()
    found, _ = teacher_boundaries(model, SIZE, ['second'])
    x = torch.randn(2, *SIZE)
    _, (tapped,) = forward_with_maps(model.train(), found, x)
    assert torch.equal(tapped, model.second(model.relu(model.stem(x))))


def test_heads_are_joined_without_branches_too():
    method = sf_teacher.SFTN(ce_weight=0., kl_weight=0.)
    teacher = distilled('deit_tiny_distilled_patch16_224', depth=3, img_size=32)
    task = sf_teacher.wrap(teacher, net(), method=method, input_size=SIZE)
    losses = task.train()(torch.randn(2, *SIZE), torch.tensor([1, 2]))
    assert losses['output'].shape == (2, 10) and not losses['branch_output']


# What depends on the values of features

class Decides(Plain):
    """Which head it uses is decided by the feature behind (`late`) or before the boundary ``second``."""

    def __init__(self, late=True, threshold=0.):
        super().__init__()
        self.other = nn.Linear(16, 10)
        self.late, self.threshold = late, threshold

    def forward(self, x):
        image, x = x, self.second(self.stem(x))
        head = self.head if (x if self.late else image).mean() > self.threshold else self.other
        return head(x.mean((2, 3)))


@pytest.mark.parametrize('late', [True, False])
def test_a_student_that_decides_on_values_is_noticed(late):
    student = Decides(late)
    nn.init.constant_(student.stem.weight, 0.05), nn.init.constant_(student.second.weight, 0.05)
    with pytest.raises(BoundaryError, match=r"after 'second'.*depends on the values of its features \(test_train_mode"
                                            r'.py:\d+: head = self.head if'):
        sf_teacher.wrap(net(), student, boundaries=[('layer1', 'second')], input_size=SIZE)


def test_a_decision_that_always_falls_the_same_way_is_reported(caplog):
    task = sf_teacher.wrap(net(), Decides(threshold=-1e9), boundaries=[('layer1', 'second')], input_size=SIZE)
    assert 'Decides reads values of its features (test_train_mode.py:' in caplog.text
    check_step(task, SIZE)


def test_values_that_do_not_come_from_the_image_may_be_read():
    class Positions(Plain):
        def forward(self, x):
            steps = torch.linspace(0, 1, 4)
            return super().forward(x) * (2. if steps.sum() > 0 else 1.) + float(steps[1]) + self.head.bias.sum().item()

    assert value_reads(Positions().eval(), torch.randn(2, *SIZE)) == []
    assert value_reads(timm.create_model('test_vit').eval(), torch.randn(1, 3, 160, 160)) == []
    read, = value_reads(Decides().eval(), torch.randn(2, *SIZE))
    assert read.startswith('test_train_mode.py:')


def test_a_teacher_that_skips_a_boundary_says_so():
    class Skips(Plain):
        def forward(self, x):
            return super().forward(x) if x.mean() > -1 else self.head(x.flatten(1)[:, :16])

    task = sf_teacher.wrap(Skips(), net(), boundaries=[('second', 'layer1')], input_size=SIZE)
    with pytest.raises(SFTeacherError, match=r'teacher Skips did not run second in this forward'):
        task(torch.full((2, *SIZE), -9.), torch.tensor([1, 2]))


# What the user has set, or changes later

def test_batch_norm_that_was_set_to_eval_stays_in_eval():
    teacher, student = net().train(), net().train()
    frozen = [teacher.layer1[0].bn1, student.layer3[0].bn2]
    for norm in frozen:
        norm.eval()
    task = sf_teacher.wrap(teacher, student, input_size=SIZE).eval().train()
    tails = [branch.tail.model for branch in task.branches.branches]
    copies = [tail.layer3[0].bn2 for tail in tails[:2]]
    statistics = [norm.running_mean.clone() for norm in (*frozen, *copies)]
    task(torch.randn(2, *SIZE), torch.tensor([1, 2]))
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip((*frozen, *copies), statistics, strict=True))
    others = [m for m in task.modules() if isinstance(m, nn.BatchNorm2d) and m not in (*frozen, *copies)]
    assert others and all(m.training for m in others)
    whole = sf_teacher.wrap(net().eval(), net(), input_size=SIZE).train()     # a model in eval mode is no such wish
    assert all(m.training for m in whole.modules())


def test_a_classifier_that_is_changed_later_is_noticed():
    task = sf_teacher.wrap(net(), net(), input_size=SIZE)
    task.teacher.reset_classifier(7)
    with pytest.raises(SFTeacherError, match=r'ResNet gives 7 logits now, and 10 when the task was made.*first'):
        task(torch.randn(2, *SIZE), torch.tensor([1, 2]))
    distillation = sf_teacher.StudentFriendlyKDTask(net(), net())
    distillation.student.reset_classifier(0)
    with pytest.raises(SFTeacherError, match=r'gives \d+ logits now, and 10 when'):
        distillation(torch.randn(2, *SIZE), torch.tensor([1, 2]))


def test_a_dtype_or_device_of_the_branches_alone_is_refused():
    with pytest.raises(SFTeacherError, match=r'dtype=torch.bfloat16 and the teacher is torch.float32: convert the tea'):
        sf_teacher.StudentFriendlyTask(net(), students=net(), input_size=SIZE, dtype=torch.bfloat16)
    with pytest.raises(SFTeacherError, match=r'device=meta and the teacher is on cpu: move the teacher first'):
        sf_teacher.StudentFriendlyTask(net(), students=net(), input_size=SIZE, device=torch.device('meta'))
    task = sf_teacher.StudentFriendlyTask(
        net().bfloat16(), students=net(), input_size=SIZE, dtype=torch.bfloat16, device=torch.device('cpu'))
    images = torch.randn(2, *SIZE, dtype=torch.bfloat16)
    result = task(images, torch.tensor([1, 2]))     # divergences are computed in float32
    assert result['output'].dtype == torch.bfloat16 and result['loss'].dtype == torch.float32
