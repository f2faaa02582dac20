"""The numerical settings of a fresh process, for the time of a probe, whatever the caller has set.

An exported teacher's logits are those that torch computes with its defaults. With another attention kernel, without
oneDNN or with deterministic algorithms it rounds otherwise, and no folder can hand such settings to those who load it.
"""
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import timm
import torch
from torch import nn

# (what the caller has set, how to set it, the default of a fresh process)
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, 'highest'),
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
     lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]), (False, False)),
    (lambda: torch.backends.mkldnn.enabled, lambda value: setattr(torch.backends.mkldnn, 'enabled', value), True),
    (lambda: torch.backends.mkldnn.deterministic,
     lambda value: setattr(torch.backends.mkldnn, 'deterministic', value), False),
    # these choose among the attention kernels of the CPU too
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, True),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp, True),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp, True),
    (lambda: (torch.tensor(1e-310, dtype=torch.float64) * 1).item() == 0, torch.set_flush_denormal, False),
]


@contextmanager
def default_numerics() -> Iterator[None]:
    """What a fresh process computes with; afterwards everything is as the caller had it."""
    with ExitStack() as stack:
        for get, set_to, default in _SETTINGS:
            before = get()
            if before != default:
                stack.callback(set_to, before)
                set_to(default)
        stack.enter_context(torch.autocast('cpu', enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


@contextmanager
def default_attention() -> Iterator[None]:
    """timm's models built in here get the attention kernels that a fresh process gives them."""
    enabled, experimental = timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)
    timm.layers.set_fused_attn(True)
    try:
        yield
    finally:
        timm.layers.set_fused_attn(enabled, experimental)


def take_attention(teacher: nn.Module, fresh: nn.Module) -> None:
    """Give a copy of a teacher the attention kernels of a model that was built with the defaults."""
    modules = dict(teacher.named_modules())
    for name, module in fresh.named_modules():
        if hasattr(module, 'fused_attn') and hasattr(modules.get(name), 'fused_attn'):
            modules[name].fused_attn = module.fused_attn
