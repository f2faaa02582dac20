"""How a feature tensor of any architecture relates to a map [B, C, H, W]."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import BoundaryError


@dataclass(frozen=True, eq=False)
class Layout:
    """The form of one feature tensor, measured at batch size 1.

    Args:
        kind: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens) or ``"NC"`` (a vector per image).
        channels: Width C of the feature.
        size: Height and width of the map; ``(1, 1)`` for ``"NC"``.
        prefix: Number of prefix tokens (class, register, distillation tokens) before the map; ``"NLC"`` only.
        rows: Rows in the first dimension per image; more than 1 where a model folds patches into the batch.
        order: Position in the row-major map of each token [rows * (L - prefix)], or None where they agree.
        signed: Whether the feature took negative values, so that a ReLU before it would lose information.
    """
    kind: str
    channels: int
    size: tuple[int, int]
    prefix: int = 0
    rows: int = 1
    order: torch.Tensor | None = None
    signed: bool = True

    def __str__(self) -> str:
        text = f'{self.channels}x{self.size[0]}x{self.size[1]} {self.kind}'
        return text + (f'+{self.prefix}' if self.prefix else '')

    def to_map(self, x: torch.Tensor) -> torch.Tensor:
        """Bring a feature of this layout to a map [B, C, H, W]; prefix tokens are dropped."""
        if self.kind == 'NHWC':
            return x.permute(0, 3, 1, 2)
        if self.kind == 'NC':
            return x[:, :, None, None]
        if self.kind == 'NLC':
            return x[:, self.prefix:].transpose(1, 2).unflatten(2, self.size)
        return x

    def from_map(self, x: torch.Tensor, prefix_tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Bring a map [B, C, H, W] to this layout.

        Args:
            x: Map with this layout's channels; of this layout's size where the layout is not ``"NCHW"``.
            prefix_tokens: Tokens [B, prefix, C] to put in front; needed where the layout has any.

        Raises:
            ValueError: The tokens have an order of their own, which is that of another size.
        """
        if self.kind == 'NHWC':
            return x.permute(0, 2, 3, 1).contiguous()
        if self.kind == 'NC':
            return x.flatten(1)
        if self.kind == 'NLC':
            if self.order is not None and tuple(x.shape[2:]) != self.size:
                raise ValueError(f'the order of tokens is that of a map of {self.size}, not {tuple(x.shape[2:])}')
            x = x.flatten(2).transpose(1, 2)
            if self.order is not None:
                x = x[:, self.order.to(x.device)]
            if self.rows > 1:
                x = x.reshape(x.shape[0] * self.rows, -1, x.shape[-1])
            return x if prefix_tokens is None else torch.cat([prefix_tokens, x], dim=1)
        return x


class Sample:
    """What is kept of a module's output to tell where timm takes a feature from: its shape and a few channels.

    All positions of at most 8 channels, evenly spread, tell outputs of perturbed weights apart, at a fraction of the
    memory of all outputs.
    """

    def __init__(self, raw: torch.Tensor) -> None:
        self.shape = tuple(raw.shape)
        self.last = _some_channels(raw, -1)       # where the channels are last
        self.second = _some_channels(raw, 1) if raw.ndim == 4 else self.last
        self._maxima: dict[int, float] = {}

    def maximum(self, prefix: int = 0) -> float:
        """Largest value of a map, or of the tokens after `prefix`; does not depend on their order."""
        if prefix not in self._maxima:
            self._maxima[prefix] = self.second[:, prefix:].max().item()
        return self._maxima[prefix]


def _some_channels(x: torch.Tensor, dim: int) -> torch.Tensor:
    if x.ndim < 3:
        return x[:0]
    channels = torch.arange(0, x.shape[dim], -(-x.shape[dim] // 8), device=x.device)
    return x.index_select(dim, channels)


def match_layout(raw: Sample, reference: Sample) -> Layout | None:
    """Find the layout in which `raw` is the map `reference` [1, C, H, W], or None if it is another tensor.

    Both must come from one forward pass, so that the comparison can be exact. Hiera's tokens are permuted; the
    permutation is found by nearest neighbours and then checked for equality.
    """
    _, c, h, w = reference.shape
    shape, expected = raw.shape, reference.second
    if shape == (1, c, h, w):
        return Layout('NCHW', c, (h, w)) if torch.equal(raw.second, expected) else None
    layout = None
    if shape == (1, h, w, c):
        layout = Layout('NHWC', c, (h, w))
    elif len(shape) == 3 and shape[0] == 1 and shape[2] == c and 0 <= shape[1] - h * w <= 16:
        prefix = shape[1] - h * w
        if raw.maximum(prefix) == reference.maximum():  # cheap, and enough to exclude most pairs
            order = _token_order(raw.last[0, prefix:], expected[0].flatten(1).T)
            layout = Layout('NLC', c, (h, w), prefix, order=order)
    return layout if layout and torch.equal(raw.last[:, layout.prefix:], layout.from_map(expected)) else None


def _token_order(raw: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor | None:
    """Which of `tokens` each row of `raw` is, where `raw` is a true permutation of them; else None."""
    if torch.equal(raw, tokens) or not torch.equal(raw.amax(1).sort().values, tokens.amax(1).sort().values):
        return None
    return torch.cdist(raw.double(), tokens.double()).argmin(1)


def map_kinds(shape: Sequence[int], input_size: tuple[int, int, int]) -> list[str]:
    """Of ``"NCHW"`` and ``"NHWC"`` those in which a shape of four dimensions is a map of the image's aspect ratio."""
    _, height, width = input_size
    sides = {'NCHW': (shape[2], shape[3]), 'NHWC': (shape[1], shape[2])}
    return [kind for kind, (h, w) in sides.items() if abs(h * width - w * height) <= max(height, width)]


def infer_layout(raw: torch.Tensor, input_size: tuple[int, int, int], where: str, kind: str | None = None) -> Layout:
    """Tell the layout of a feature from its shape alone, for modules that timm does not describe.

    Four dimensions are NCHW unless only NHWC gives a map with the input's aspect ratio; three are tokens, of which
    the fewest (up to 5) are prefix tokens that leave a grid of that aspect ratio; two are a vector.

    Args:
        raw: The feature of one image.
        input_size: (C, H, W) of the image.
        where: What the feature is, for the error.
        kind: ``"NCHW"`` or ``"NHWC"`` where that is known.

    Raises:
        BoundaryError: The shape is none of these, or it fits both NCHW and NHWC.
    """
    signed, shape = raw.is_meta or bool((raw < 0).any()), tuple(raw.shape)
    _, height, width = input_size
    if raw.ndim == 4 and shape[0] == 1:
        kinds = [kind] if kind else map_kinds(shape, input_size)
        if len(kinds) == 2:
            raise BoundaryError(f'{where} returns a tensor of shape {shape} for one image, which may be [1, C, H, W] '
                                f'or [1, H, W, C]: say which by :NCHW or :NHWC behind its name in `boundaries`')
        if kinds == ['NHWC']:
            return Layout('NHWC', shape[3], (shape[1], shape[2]), signed=signed)
        return Layout('NCHW', shape[1], (shape[2], shape[3]), signed=signed)
    if kind:
        raise BoundaryError(f'{where} returns a tensor of shape {shape} for one image, which is not a map in {kind}')
    if raw.ndim == 3:
        return _infer_tokens(shape, (height, width), signed)
    if raw.ndim == 2 and shape[0] == 1:
        return Layout('NC', shape[1], (1, 1), signed=signed)
    raise BoundaryError(
        f'{where} returns a tensor of shape {shape} for one image; a boundary is a map [1, C, H, W] or [1, H, W, C], '
        f'tokens [1, L, C] or a vector [1, C]. Choose another module in `boundaries`.')


def _infer_tokens(shape: tuple[int, ...], image: tuple[int, int], signed: bool) -> Layout:
    rows, length, channels = shape
    if rows > 1:    # patches folded into the batch: [rows of the image x tokens of a patch], each a square grid
        outer, inner = math.isqrt(rows), math.isqrt(length)
        if outer * outer == rows and inner * inner == length:
            side = outer * inner
            order = torch.arange(side * side).view(outer, inner, outer, inner).transpose(1, 2).reshape(-1)
            return Layout('NLC', channels, (side, side), rows=rows, order=order, signed=signed)
        return Layout('NLC', channels, (rows, length), rows=rows, signed=signed)
    for prefix in range(min(length, 6)):    # the fewest prefix tokens that leave a grid of the image's aspect ratio
        h = round(math.sqrt((length - prefix) * image[0] / image[1]))
        if h and (length - prefix) % h == 0 and h * image[1] == (length - prefix) // h * image[0]:
            return Layout('NLC', channels, (h, (length - prefix) // h), prefix, signed=signed)
    return Layout('NLC', channels, (1, length), signed=signed)
