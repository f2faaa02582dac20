"""Whether tails do what the student does: the student's logits for the student's own features, before any training."""
import logging
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..checks import logits_of
from ..errors import BoundaryError, SFTeacherError
from .clones import (
    ShapesOnly,
    calibrate_batch_norm,
    clone_model,
    clone_on_meta,
    perturbed_weights,
    preserved_rng,
)
from .tails import Tail
from .trace import Trace, dummy_image, hooked, tensors
from .value_reads import value_reads

_logger = logging.getLogger(__name__)


def check_tails(trace: Trace, tails: list[Tail]) -> None:
    """Check that tails give the student's logits for the student's own features.

    The comparison runs at batch size 2 with perturbed weights: many models start with a zero head or with logits that
    hardly depend on the image, so that on fresh weights anything would pass. Equality to the bit in float32 ends it, at
    the smallest image size that the model admits (down to a sixteenth of the cost); otherwise full size decides, in
    float32 and then in float64. A model whose forward reads values (``if x.mean() > 0``) is compared on batches of
    several signs and scales. In train mode a tail must run and return logits.

    Raises:
        BoundaryError: A tail fails or gives other logits, or the logits do not depend on the image.
    """
    with preserved_rng(trace.model):
        check_hooks(trace.model, trace.input_size)
        for size in dict.fromkeys((_small_size(trace), trace.input_size)):
            with suppress(Exception):   # not at this size or precision: the last comparison says what is wrong
                small = size != trace.input_size
                at = Trace(trace.model, size, {m for t in tails for m in t.boundary}) if small else trace
                return _compare(at, tails, torch.float32, rtol=0., sensitivity=1e-3)
        _compare(trace, tails, torch.float64, rtol=1e-9, sensitivity=1e-6)


def check_hooks(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Refuse a model whose forward hooks change its logits: copies of it have none.

    Raises:
        SFTeacherError: Names a module with such a hook.
    """
    hooked_modules = [name for name, m in model.named_modules() if m._forward_hooks]
    if not hooked_modules:
        return
    images = dummy_image(model, input_size)
    values = perturbed_weights(model, images.dtype)
    with torch.no_grad():
        with_hooks, without = (logits_of(copied, copied(images)) for copied in (
            clone_model(model, values, hooks=hooks) for hooks in (True, False)))
    if with_hooks.shape != without.shape or not torch.allclose(with_hooks, without, equal_nan=True):
        raise SFTeacherError(
            f'forward hooks of {type(model).__name__} (at {", ".join(map(repr, hooked_modules[:3]))}) change its '
            f'logits, and copies of it are made without hooks. Remove them (handle.remove()), or write what they do '
            f'into the forward of a module')


def _small_size(trace: Trace) -> tuple[int, int, int]:
    """A quarter, a third, half or all of the sides, at least 64 pixels: what the model admits, as tried on meta."""
    channels, height, width = trace.input_size
    model = clone_on_meta(trace.model)
    for parts in (4, 3, 2):
        size = (channels, height // parts, width // parts)
        with suppress(Exception), torch.no_grad(), ShapesOnly():
            if min(size[1:]) >= 64:
                model(dummy_image(model, size))
                return size
    return trace.input_size


def _compare(trace: Trace, tails: list[Tail], dtype: torch.dtype, rtol: float, sensitivity: float) -> None:
    values = perturbed_weights(trace.model, dtype)
    model, images = clone_model(trace.model, values), dummy_image(trace.model, trace.input_size, batch=2).to(dtype)

    def differ(logits: torch.Tensor, share: float) -> bool:
        return (logits[0] - logits[1]).abs().max().item() > share * logits.abs().max().item()

    with torch.no_grad():
        if not differ(logits_of(model, model(images)), 1e-3):   # a deep fresh model, see `calibrate_batch_norm`
            calibrate_batch_norm(model, images)    # in place, so that `values` has the statistics
        if not differ(logits_of(model, model(images)), sensitivity):
            raise BoundaryError(f'{type(model).__name__} gives the same logits for different images, so that no tail '
                                f'can be checked. Choose another module in `boundaries`.')
    reads = value_reads(model, images)      # one batch is enough for a model that treats all images alike
    batches = [images] if reads == [] else [images, images.abs(), -images.abs(), 8 * images]
    expected = [_features_and_logits(model, batch, tails) for batch in batches]
    copies = []
    for tail in tails:
        own = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tail.named_buffers()}     # with its constants
        own |= {n: values[n.removeprefix('model.')] for n, _ in tail.named_parameters()}
        own |= {f'model.{n}': values[n] for n in tail.model.state_dict() if n in values}      # not extra state
        copies.append(clone_model(tail, own))
        if trace.input_size != tail.input_size:
            copies[-1].answer_as(trace.split_at(tail.boundary, tail.output), trace)
            if copies[-1].features != tail.features or copies[-1].state_dict().keys() != tail.state_dict().keys():
                raise RuntimeError('another tail at another size')
        for features, logits in expected:
            _check_tail(copies[-1], features, logits, rtol, reads)
        tail._state.dense = copies[-1]._state.dense
    for copied in copies:   # last, because it moves the statistics of batch norms
        _run(copied.train(), expected[0][0])
    if reads:
        _logger.warning('%s reads values of its features (%s): what it does may depend on the image. Its branches are '
                        'exact for %d batches that differ in sign and scale; make sure that they cover the cases.',
                        type(model).__name__, '; '.join(reads), len(batches))


Features = dict[str, list[torch.Tensor]]


def _features_and_logits(model: nn.Module, images: torch.Tensor, tails: list[Tail]) -> tuple[Features, torch.Tensor]:
    """What the modules at all boundaries return, by name, and the logits."""
    got: Features = {}

    def capture(name: str, module: nn.Module, args: Any, output: Any) -> None:
        got[name] = [t.clone() for t in tensors(output)]

    with torch.no_grad(), hooked(model, capture, {name for tail in tails for name in tail.boundary}):
        return got, logits_of(model, model(images))


def _run(tail: Tail, features: Features) -> torch.Tensor:
    try:
        with torch.no_grad():
            return tail(*(features[name][i] for name, i in tail.features))
    except Exception as error:
        mode = 'train' if tail.training else 'eval'
        advice = 'Choose another module in `boundaries`'
        if isinstance(error, AttributeError):
            advice = ("The student's forward reads there what a module before the boundary holds, and a tail does not "
                      "have that module. Choose a later module in `boundaries`, or, where all fail so, timm's model of "
                      'the same architecture')
        raise BoundaryError(f'{_named(tail)} does not run in {mode} mode ({type(error).__name__}: {error}). '
                            f'{advice}.') from error


def _check_tail(tail: Tail, features: Features, expected: torch.Tensor, rtol: float, reads: list[str] | None) -> None:
    logits, scale = _run(tail, features), expected.abs().max().item()
    off = (logits - expected).abs().max().item() if logits.shape == expected.shape else float('inf')
    if not off <= rtol * scale:
        why = f' What the model does depends on the values of its features ({"; ".join(reads)}).' if reads else ''
        raise BoundaryError(f'{_named(tail)} does not reproduce the logits: {off:.2g} off, with logits up to '
                            f'{scale:.2g}.{why} Choose another module in `boundaries`.')


def _named(tail: Tail) -> str:
    return f'the tail of {type(tail.model).__name__} after {", ".join(map(repr, tail.boundary))}'
