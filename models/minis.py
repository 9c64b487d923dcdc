"""Miniatures of the benchmark models: the same code paths with few channels and blocks."""

from dataclasses import dataclass
from typing import Callable

from timm.models.swin_transformer import SwinTransformer
from timm.models.tnt import TNT
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from exporters import set_fused_attention
from pyramid_tnt import PyramidTNT
from swin_original import SwinOriginal
from uniformer import UniFormer


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


def _original_swin(baked=False):
    model = SwinOriginal((16, 16), patch=2, dim=8, depths=(2, 1), heads=(2, 4), window=4, classes=10)
    if baked:
        model.set_open_batch = lambda value: None
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
    "swin_torchvision": Mini(
        lambda: TorchvisionSwin([2, 2], 4, [2, 1], [2, 4], [4, 4], num_classes=10), (16, 16),
        "torchvision Swin: as swin, the shift mask computed in the graph",
    ),
    "swin_torchvision_pad": Mini(
        lambda: TorchvisionSwin([2, 2], 4, [2, 1], [2, 4], [4, 4], num_classes=10), (20, 20),
        "torchvision Swin, padded: 10x10 map in windows of 4x4, padded before the roll",
    ),
    "swin_original": Mini(
        _original_swin, (16, 16), "Swin as first released: as swin, tokens [B, H*W, C], merge by four slices"
    ),
    "swin_original_baked": Mini(
        lambda: _original_swin(baked=True), (16, 16),
        "the same with an open batch that the exporter baked in: right for a batch of 2 alone",
    ),
    "tnt": Mini(
        lambda: TNT(img_size=(32, 48), patch_size=16, embed_dim=12, inner_dim=4, depth=2,
                    num_heads_inner=2, num_heads_outer=3, num_classes=10),
        (32, 48), "timm TNT: 6 patches of 16 words and a class token, two blocks",
    ),
    "ptnt": Mini(
        lambda: PyramidTNT((32, 48), depths=(2, 1), dims=(8, 16), heads=(2, 4), inner_dims=(2, 4),
                           inner_heads=(1, 2), pools=(2, 1), ratio=2, classes=10),
        (32, 48), "PyramidTNT: 24 patches of 16 words, keys pooled by 2, merge, 6 patches",
    ),
    "uniformer": Mini(
        lambda: UniFormer(depths=(1, 2), dims=(8, 16), head_dim=8, conv_stages=1, classes=10),
        (32, 32), "UniFormer: a convolution stage on 8x8, then 16 tokens, two attention blocks of two heads",
    ),
}
