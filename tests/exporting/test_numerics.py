"""A caller's numerical settings neither stop an export nor change what is exported, and they stay as they are."""
import pytest
import timm
import torch

from sf_teacher.exporting.exporter import export
from sf_teacher.exporting.verify import verify
from tests.helpers import build, check_here

pytestmark = pytest.mark.fresh_check


def sdpa(name):
    return (getattr(torch.backends.cuda, f'{name}_sdp_enabled'), getattr(torch.backends.cuda, f'enable_{name}_sdp'))


SETTINGS = {    # how to ask for it, how to set it, what to
    'fused attention off': (timm.layers.use_fused_attn, timm.layers.set_fused_attn, False),
    'no flash attention': (*sdpa('flash'), False),
    'no mkldnn': (lambda: torch.backends.mkldnn.enabled, lambda v: setattr(torch.backends.mkldnn, 'enabled', v), False),
    'deterministic': (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    'denormals': (lambda: (torch.tensor(1e-310, dtype=torch.float64) * 1).item() == 0, torch.set_flush_denormal, True),
    'float64': (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    'matmul': (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, 'medium'),
}


@pytest.mark.slow
@pytest.mark.parametrize('setting', SETTINGS)
def test_every_setting(setting, tmp_path):
    get, set_to, value = SETTINGS[setting]
    model, before = build('test_vit', img_size=64), get()
    assert before != value
    try:
        set_to(value)
        folder = export(model, tmp_path / 'teacher')      # in a fresh process, which knows nothing of it
        assert get() == value
    finally:
        set_to(before)
    assert check_here(folder, tolerance=0)['bit_equal']


def test_attention_switched_off_in_the_modules(tmp_path):
    model = build('test_vit', img_size=64)
    for block in model.blocks:
        block.attn.fused_attn = False
    assert check_here(export(model, tmp_path / 'teacher'), tolerance=0)['bit_equal']
    assert not any(block.attn.fused_attn for block in model.blocks)


@pytest.mark.slow
def test_attention_switched_off_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('TIMM_FUSED_ATTN', '0')
    assert verify(export(build('test_vit', img_size=64), tmp_path / 'teacher'), tolerance=0)['bit_equal']
