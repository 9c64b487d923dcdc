"""The benchmark models by name, with what their papers publish about them."""

from dataclasses import dataclass
from typing import Callable, Optional

import timm
import torchvision

from pyramid_tnt import PyramidTNT
from swin_original import SwinOriginal
from uniformer import UniFormer


@dataclass(frozen=True)
class Entry:
    build: Callable
    family: Optional[str]  # its miniature; none for the convolutional baselines
    image: tuple = (224, 224)
    published: Optional[tuple] = None  # million parameters, GMACs


def _timm(*names, **options):
    """The first of `names` that the installed timm has."""
    known = [n for n in names if n in timm.list_models()]
    if not known:
        raise LookupError(f"timm {timm.__version__} has none of {', '.join(names)}")
    return timm.create_model(known[0], pretrained=False, **options)


SWIN_T = (28.3, 4.49)

MODELS = {
    "resnet50": Entry(lambda: torchvision.models.resnet50(weights=None), None),
    "resnet101": Entry(lambda: torchvision.models.resnet101(weights=None), None),
    "swin_t": Entry(lambda: _timm("swin_tiny_patch4_window7_224"), "swin", published=SWIN_T),
    "swin_s": Entry(lambda: _timm("swin_small_patch4_window7_224"), "swin"),
    "swin_b": Entry(lambda: _timm("swin_base_patch4_window7_224"), "swin"),
    "swin_t_torchvision": Entry(
        lambda: torchvision.models.swin_t(weights=None), "swin_torchvision", published=SWIN_T
    ),
    "swin_t_original": Entry(SwinOriginal, "swin_original", published=SWIN_T),
    "tnt_s": Entry(lambda: _timm("tnt_s_patch16_224"), "tnt", published=(23.7, 5.22)),
    "vit_s": Entry(lambda: _timm("vit_small_patch16_224"), "vit"),
    "ptnt_s": Entry(PyramidTNT, "ptnt", image=(256, 256), published=(31.7, 3.28)),
    "uniformer_s": Entry(UniFormer, "uniformer", published=(21.5, 3.63)),
    # Other sizes of the same architectures, to see that nothing depends on those above.
    "swin_l": Entry(lambda: _timm("swin_large_patch4_window7_224"), "swin"),
    "swin_b_384": Entry(lambda: _timm("swin_base_patch4_window12_384"), "swin", image=(384, 384)),
    "swin_t_256": Entry(
        lambda: _timm("swin_tiny_patch4_window7_224", img_size=256, window_size=8), "swin", image=(256, 256)
    ),
    # Wider than high, and the windows of no stage divide its map.
    "swin_t_256x320": Entry(
        lambda: _timm("swin_tiny_patch4_window7_224", img_size=(256, 320)), "swin", image=(256, 320)
    ),
    # Windows of 14 in the third stage.
    "swin_s3_t": Entry(lambda: _timm("swin_s3_tiny_224"), "swin"),
    "vit_b": Entry(lambda: _timm("vit_base_patch16_224"), "vit"),
    "tnt_b": Entry(lambda: _timm("tnt_b_patch16_224"), "tnt"),
}
