import math
import statistics

import pytest
import torch

from sf_teacher.analysis.intervals import interval
from sf_teacher.functional import calibration_error, entropy, kl_divergence, linear_cka


def test_cka_is_one_for_rotated_and_scaled_features_and_small_for_unrelated_ones():
    x = torch.randn(500, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.)
    assert linear_cka(x, torch.randn(500, 20)) < 0.1
    assert math.isnan(linear_cka(x, torch.ones(500, 2)))


def test_cka_equals_the_definition_by_kernels():
    x, y = torch.randn(40, 5).double(), torch.randn(40, 7).double()
    centre = torch.eye(40).double() - 1 / 40

    def hsic(a, b):
        return torch.trace(centre @ a @ a.T @ centre @ b @ b.T)
    assert linear_cka(x, y) == pytest.approx((hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item())


def test_calibration_error():
    certain = torch.tensor([[100., 0.], [100., 0.], [0., 100.], [0., 100.]])
    assert calibration_error(certain, torch.tensor([0, 0, 1, 1])) == pytest.approx(0., abs=1e-6)
    assert calibration_error(certain, torch.tensor([0, 1, 1, 0])) == pytest.approx(0.5, abs=1e-6)
    assert calibration_error(torch.zeros(10, 4), torch.zeros(10, dtype=torch.long)) == pytest.approx(0.75)


def test_entropy_and_divergence():
    assert entropy(torch.zeros(3, 4)).item() == pytest.approx(math.log(4))
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    p, q = a.softmax(-1), b.softmax(-1)
    assert kl_divergence(a, b).item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
    assert kl_divergence(a, a).item() == pytest.approx(0., abs=1e-6)


def test_interval_is_students_t():
    values = [1., 2., 4.]
    mean, half = interval(values)
    assert mean == pytest.approx(7 / 3) and half == pytest.approx(4.3026527 * statistics.stdev(values) / 3 ** 0.5)
    assert interval([5.]) == (5., math.inf)
