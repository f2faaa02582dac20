"""Where a forward reads the values of its features, as ``if x.mean() > 0`` does, so that they decide what it does."""
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

_READS = {
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item,
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__contains__, torch.Tensor.equal,
    torch.Tensor.allclose, torch.Tensor.nonzero, torch.Tensor.is_nonzero, torch.equal, torch.allclose, torch.nonzero,
    torch.is_nonzero,
}


def value_reads(model: nn.Module, images: torch.Tensor) -> list[str] | None:
    """The lines of a forward that read values of what was computed from the image, e.g. ``model.py:12``.

    Args:
        model: A copy that may be run.
        images: [B, C, H, W].

    Returns:
        One text for each line; None where the model does not run on a subclass of `torch.Tensor`.
    """
    found: list[str] = []

    class FromImage(torch.Tensor):
        """A tensor computed from the image; so are the results of functions that take it."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _READS:
                found.append(_line())
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    try:
        with torch.no_grad():
            model(images.as_subclass(FromImage))
    except Exception:
        return None
    return list(dict.fromkeys(found))


def _line() -> str:
    """The innermost line of the stack that is not torch's or ours."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and not Path(frame.filename).is_relative_to(Path(torch.__file__).parent):
            return f'{Path(frame.filename).name}:{frame.lineno}: {frame.line}'
    return 'an unknown line'
