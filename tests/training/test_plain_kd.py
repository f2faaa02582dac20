"""Plain distillation: timm's task, with a divergence that bfloat16 does not coarsen."""
import copy

import timm
import torch
from timm.task import LogitDistillationTask

from sf_teacher.training.distillation import distillation_task
from sf_teacher.training.settings import StudentRun

CPU = torch.device('cpu')


def tasks():
    torch.manual_seed(0)
    student, teacher = (timm.create_model('test_resnet', num_classes=7) for _ in range(2))
    with torch.no_grad():       # as near as a trained student is
        for mine, its in zip(student.parameters(), teacher.parameters(), strict=True):
            mine.copy_(its + 0.5 * its.std(correction=0) * torch.randn_like(its))
    config = StudentRun(kd_temperature=3., task_loss_weight=0.3, distill_loss_weight=2.)
    theirs = LogitDistillationTask(copy.deepcopy(student), copy.deepcopy(teacher), torch.nn.CrossEntropyLoss(),
                                   temperature=3., task_loss_weight=0.3, distill_loss_weight=2., verbose=False)
    return distillation_task(student, teacher, torch.nn.CrossEntropyLoss(), config, CPU), theirs


def test_it_is_timms_to_the_bit():
    images, target, made = torch.randn(5, 3, 32, 32), torch.arange(5), []
    for task in tasks():
        losses = task(images, target)
        losses['loss'].backward()
        made.append((losses, [p.grad for p in task.trainable_module.parameters()]))
    (ours, own_grads), (theirs, grads) = made
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(a, b) for a, b in zip(own_grads, grads, strict=True))


def test_logarithms_are_not_taken_in_bfloat16():
    images, target = torch.randn(16, 3, 32, 32), torch.arange(16) % 7
    errors = []
    for task in tasks():
        task.eval()
        with torch.autocast('cpu', torch.bfloat16):
            losses = task(images, target)
            teacher = task.teacher.model(images)
        assert losses['output'].dtype == teacher.dtype == torch.bfloat16
        p, q = (logits.double().div(3.).log_softmax(1) for logits in (teacher, losses['output'].detach()))
        exact = 9 * (p.exp() * (p - q)).sum(1).mean()
        errors.append(abs(losses['kd_loss'].item() / exact.item() - 1))
    assert errors[0] < 1e-3 < errors[1]
