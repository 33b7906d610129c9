"""The backbones SUM can tune: SAM's three, and `tiny`, which trains on a laptop.

Every entry builds a stock `segment_anything.modeling.Sam`: SamPredictor and SamAutomaticMaskGenerator accept all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from sum.models.vit import through


@dataclass(frozen=True, slots=True)
class Backbone:
    """One entry of BACKBONES."""

    build: Callable[[], Sam]  # random weights, train mode
    side: int  # px of the square model frame
    note: str  # one line for `python -m sum --help` and error messages


class ConvBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm and a twice as wide pointwise MLP with a residual: a cheaper ConvNeXt block.

    ReLU and a width of 2 instead of GELU and 4: on a CPU the block is bound by memory, not by arithmetic.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.shrink = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, C, h, w]`."""
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.shrink(F.relu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve height and width: LayerNorm, then a 2x2 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.reduce = nn.Conv2d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, C', h/2, w/2]`."""
        half: Tensor = self.reduce(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return half


class GlobalBlock(nn.Module):
    """A transformer block over all positions of the coarsest grid: small objects need to see the whole scene."""

    def __init__(self, channels: int, grid: int, *, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(0.02 * nn.init.normal_(Tensor(1, grid * grid, channels)))
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, g, g]` -> `[B, C, g, g]`."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens) + self.position).view(batch, -1, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(mixed)
        out: Tensor = tokens + self.mlp(tokens)
        return out.transpose(1, 2).view(batch, channels, height, width)


class TinyEncoder(nn.Module):
    """A convolutional image encoder in the interface of SAM's ViT: `img_size`, `patch_embed`, `blocks`, `neck`.

    Features of stride 4, 8 and 16 meet at stride 8, so that an embedding position still knows the pixels below it.
    image `[B, 3, S, S]`, normalised -> embedding `[B, out_channels, S/8, S/8]`.
    """

    def __init__(self, *, img_size: int, widths: tuple[int, int, int] = (64, 128, 192), out_channels: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.img_size, self.widths = img_size, widths
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, fine // 2, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(fine // 2, fine, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(fine), ConvBlock(fine)),
                nn.Sequential(Downsample(fine, middle), ConvBlock(middle), ConvBlock(middle), ConvBlock(middle)),
                nn.Sequential(Downsample(middle, coarse), ConvBlock(coarse), ConvBlock(coarse)),
                nn.Sequential(
                    GlobalBlock(coarse, img_size // 16), ConvBlock(coarse), GlobalBlock(coarse, img_size // 16)
                ),
            ]
        )
        self.neck = nn.ModuleDict(
            {
                "fine": nn.Conv2d(fine, middle, 2, stride=2),
                "middle": nn.Conv2d(middle, middle, 1),
                "coarse": nn.Conv2d(coarse, middle, 1),
                "mix": nn.Sequential(ConvBlock(middle), ConvBlock(middle)),
                "out": nn.Conv2d(middle, out_channels, 1),
                "norm": nn.LayerNorm(out_channels),
            }
        )

    def forward(self, image: Tensor, *, recompute: bool = False) -> Tensor:
        """`[B, 3, S, S]`, zero mean and unit variance -> `[B, C, S/8, S/8]`. recompute: see sum.models.vit.encode."""
        return self.join(*self.stages(image, recompute=recompute))

    def stages(self, image: Tensor, *, recompute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Features of stride 4, 8 and 16, as wide as `widths`."""
        first, second, third, last = (partial(through, block, recompute=recompute) for block in self.blocks)
        fine = first(self.patch_embed(image.contiguous(memory_format=torch.channels_last)))
        middle = second(fine)
        return fine, middle, last(third(middle))

    def join(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """What `stages` made -> the embedding `[B, C, S/8, S/8]`."""
        wide = F.interpolate(self.neck["coarse"](coarse), scale_factor=2, mode="bilinear", align_corners=False)
        mixed = self.neck["mix"](self.neck["fine"](fine) + self.neck["middle"](middle) + wide)
        out: Tensor = self.neck["norm"](self.neck["out"](mixed).permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


def build_tiny(*, side: int = 128, channels: int = 64) -> Sam:
    """A SAM of about 2 M parameters on frames of 128 px; embedding stride 8, low-resolution masks of 64 x 64."""
    grid = side // 8
    return Sam(
        image_encoder=TinyEncoder(img_size=side, out_channels=channels),  # SAM's interface, not its class
        prompt_encoder=PromptEncoder(
            embed_dim=channels, image_embedding_size=(grid, grid), input_image_size=(side, side), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=128, num_heads=4),
            transformer_dim=channels,
            iou_head_depth=3,
            iou_head_hidden_dim=channels,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def _meta(name: str) -> Callable[[], Sam]:
    def build() -> Sam:
        sam: Any = sam_model_registry[name](checkpoint=None)
        return sam.train()  # the registry hands out eval mode

    return build


BACKBONES: Mapping[str, Backbone] = {
    "tiny": Backbone(build_tiny, 128, "2 M parameters, weights in this repository, for laptops and tests"),
    "vit_b": Backbone(_meta("vit_b"), 1024, "SAM ViT-B, 94 M parameters, needs Meta's checkpoint"),
    "vit_l": Backbone(_meta("vit_l"), 1024, "SAM ViT-L, 312 M parameters, needs Meta's checkpoint"),
    "vit_h": Backbone(_meta("vit_h"), 1024, "SAM ViT-H, 641 M parameters, needs Meta's checkpoint"),
}
