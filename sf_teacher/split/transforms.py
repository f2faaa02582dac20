"""The transform of a branch: a teacher's map in, the feature that a student's tail expects out."""
import torch
import torch.nn.functional as F
from torch import nn

from .layouts import Layout


class Transform(nn.Module):
    """Map a teacher's feature to every tensor that crosses a student's boundary (SFTN's T).

    Args:
        in_channels: Channels of the teacher's map.
        in_size: Height and width of the teacher's map at build time.
        layouts: What the student's tail expects.
        act: ReLU at the end: ``"auto"`` only where the student's own feature has no negative values, ``"relu"``
            always, ``"none"`` never. The paper has a ReLU in every transform (as reported); "auto" is ours.

    Shape:
        - input: map [B, in_channels, H, W].
        - output: one tensor for each layout.
    """

    def __init__(
            self,
            in_channels: int,
            in_size: tuple[int, int],
            layouts: tuple[Layout, ...],
            act: str = 'auto',
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_FeatureTransform(in_channels, in_size, layout, act) for layout in layouts)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [part(x) for part in self.parts]

    def __str__(self) -> str:
        return ' & '.join(map(str, self.parts))


class _FeatureTransform(nn.Module):
    """Resize, project and normalise a map, and bring it to one layout.

    1x1 convolution where the sizes agree, 3x3 with stride 2 to halve, 4x4 transposed with stride 2 to double, each
    with batch norm (the paper's, as reported). Any other ratio: area averaging down or bilinear up, then 1x1 (ours).
    Prefix tokens are a linear function of the map's mean (ours).
    """

    def __init__(self, in_channels: int, in_size: tuple[int, int], layout: Layout, act: str) -> None:
        super().__init__()
        self.layout, self.in_channels, self.in_size = layout, in_channels, in_size
        (h, w), (out_h, out_w) = in_size, layout.size
        self.resize = False
        if (h, w) == (out_h, out_w):
            self.proj: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(in_channels, layout.channels, 1, bias=False)
        elif ((h + 1) // 2, (w + 1) // 2) == (out_h, out_w):
            self.proj = nn.Conv2d(in_channels, layout.channels, 3, stride=2, padding=1, bias=False)
        elif (h * 2, w * 2) == (out_h, out_w):
            self.proj = nn.ConvTranspose2d(in_channels, layout.channels, 4, stride=2, padding=1, bias=False)
        else:
            self.proj, self.resize = nn.Conv2d(in_channels, layout.channels, 1, bias=False), True
        self.norm = nn.BatchNorm2d(layout.channels)
        self.act = nn.ReLU() if act == 'relu' or (act == 'auto' and not layout.signed) else nn.Identity()
        self.prefix = nn.Linear(in_channels, layout.prefix * layout.channels) if layout.prefix else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.proj(self._resized(x) if self.resize else x))
        if len(y) == 1 and y.requires_grad:     # PyTorch 2.14's batch norm on CPUs is wrong for one in tokens' order
            y.register_hook(torch.Tensor.contiguous)
        y = self.act(y)
        if self.prefix is None:
            return self.layout.from_map(y)
        tokens = self.prefix(x.mean((2, 3))).unflatten(1, (self.layout.prefix, self.layout.channels))
        return self.layout.from_map(y, tokens)

    def _resized(self, x: torch.Tensor) -> torch.Tensor:
        """Resize by the build-time ratio, so that other image sizes work for students that admit them."""
        (h, w), (out_h, out_w) = self.in_size, self.layout.size
        size = max(round(x.shape[2] * out_h / h), 1), max(round(x.shape[3] * out_w / w), 1)
        if size[0] <= x.shape[2] and size[1] <= x.shape[3]:
            return F.adaptive_avg_pool2d(x, size)
        return F.interpolate(x, size, mode='bilinear', align_corners=False)

    def __str__(self) -> str:
        how = type(self.proj).__name__ + f'{self.proj.kernel_size[0]}x{self.proj.kernel_size[0]}'
        how = ('resize + ' if self.resize else '') + how + ('' if self.proj.stride[0] == 1 else '/2')
        h, w = self.in_size
        return f'{self.in_channels}x{h}x{w} -> {how} -> {self.layout}'
