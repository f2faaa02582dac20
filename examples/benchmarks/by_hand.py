"""SFTN's step in a loop that has none of the package: the floor that step_cost.py holds its time against."""
import copy

import torch
import torch.nn.functional as F
from torch import nn


class ByHand:
    """SFTN's step from the layers alone; the weights are copies of a task's."""

    def __init__(self, task, student):
        task = copy.deepcopy(task)
        self.teacher, self.method, self.paths = task.teacher, task.method, []
        self.indices = [b.index for b in task.branches.boundaries]
        self.parameters = list(task.teacher.parameters())
        for branch, source in zip(task.branches.branches, task.branches.sources, strict=True):
            part, own = branch.transform.parts[0], copy.deepcopy(student)
            own.load_state_dict(branch.tail.model.state_dict(), strict=False)
            resize = [nn.AdaptiveAvgPool2d(part.layout.size) if part.layout.size <= part.in_size else
                      nn.Upsample(part.layout.size, mode='bilinear')] * part.resize
            transform = nn.Sequential(*resize, part.proj, part.norm, part.act)
            self.paths.append((transform, part, behind(own, branch), source))
            self.parameters += [*part.parameters(), *(own.get_parameter(n) for n, _ in
                                                      branch.tail.model.named_parameters())]

    def step(self, x, y):
        final, maps = self.teacher.forward_intermediates(x, indices=self.indices)
        teacher = self.teacher.forward_head(final)
        ce, kl, p = 0., 0., F.log_softmax(teacher.detach() if self.method.detach_teacher_logits else teacher, dim=-1)
        for transform, part, tail, source in self.paths:
            z = transform(maps[source])
            if part.layout.kind == 'NHWC':
                z = z.permute(0, 2, 3, 1).contiguous()
            elif part.layout.kind == 'NLC':
                prefix = part.prefix(maps[source].mean((2, 3))).unflatten(1, (part.layout.prefix, -1))
                z = torch.cat([prefix, z.flatten(2).transpose(1, 2)], dim=1)
            z = tail(z)
            ce = ce + F.cross_entropy(z, y)
            kl = kl + F.kl_div(F.log_softmax(z, dim=-1), p, reduction='batchmean', log_target=True)
        return F.cross_entropy(teacher, y) + (self.method.ce_weight * ce + self.method.kl_weight * kl) / len(self.paths)


def behind(student, branch):
    """The student's layers behind a boundary as a plain sequence, checked against the tail."""
    names, owner, levels = branch.tail.boundary[-1].split('.'), student, []
    for name in names:
        children = dict(owner.named_children())
        levels.insert(0, list(children.values())[list(children).index(name) + 1:])
        owner = children[name]
    layers = [layer for level in levels[:-1] for layer in level]
    with torch.no_grad():
        like = branch.eval().transform(torch.randn(2, branch.transform.parts[0].in_channels, *branch.source.size))[0]
        expected = branch.tail(like)
        student.eval()
        for count in range(len(levels[-1]) + 1):    # the others belong to the head
            body = nn.Sequential(*layers, *levels[-1][:count])
            try:
                found = student.forward_head(body(like))
            except Exception:
                continue
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                branch.train()
                student.train()
                return lambda x: student.forward_head(body(x))
    raise SystemExit(f'the tail of {type(student).__name__} after {names} is no plain sequence of its layers')
