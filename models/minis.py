"""Miniatures of the benchmark models: the same code paths with few channels and blocks."""

from dataclasses import dataclass
from typing import Callable

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from exporters import set_fused_attention


@dataclass(frozen=True)
class Mini:
    build: Callable
    image: tuple  # height, width
    about: str


def _timm_swin(image, depths, heads, fused=False):
    model = SwinTransformer(
        img_size=image, patch_size=2, window_size=4, embed_dim=8, depths=depths, num_heads=heads,
        num_classes=10,
    )
    set_fused_attention(model, fused)
    return model


def _timm_vit(fused):
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10,
    )
    set_fused_attention(model, fused)
    return model


MINIS = {
    "swin": Mini(
        lambda: _timm_swin((16, 16), (2, 1), (2, 4)), (16, 16),
        "timm Swin: 8x8 map in four windows of 4x4, plain and shifted block, merge, one window of 4x4",
    ),
    "swin_wide": Mini(
        lambda: _timm_swin((16, 32), (2, 2), (2, 4)), (16, 32),
        "timm Swin, not square: 8x16 map, then 4x8 where only the width is shifted",
    ),
    "swin_pad": Mini(
        lambda: _timm_swin((20, 20), (2, 1), (2, 4)), (20, 20),
        "timm Swin, padded: 10x10 map in windows of 4x4, plain and shifted, merge, 5x5 map",
    ),
    "swin_odd": Mini(
        lambda: _timm_swin((10, 10), (2, 1), (2, 4)), (10, 10),
        "timm Swin, odd: 5x5 map in windows of 4x4, plain and shifted, merge of an odd map, 3x3 map",
    ),
    "swin_sdpa": Mini(
        lambda: _timm_swin((16, 16), (2, 1), (2, 4), fused=True), (16, 16),
        "timm Swin with scaled_dot_product_attention, relative position bias and mask as its mask",
    ),
    "vit": Mini(
        lambda: _timm_vit(True), (16, 16),
        "timm ViT: 16 patches and a class token, two blocks, scaled_dot_product_attention",
    ),
    "vit_unfused": Mini(
        lambda: _timm_vit(False), (16, 16),
        "timm ViT with separate matmuls, scale on the query",
    ),
}
