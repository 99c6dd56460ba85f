"""Model families, one file each, and the table of all of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from xattn.models.allegro import Allegro
from xattn.models.animatediff import AnimateDiff
from xattn.models.anyflow import AnyFlow, AnyFlowFAR
from xattn.models.aura_flow import AuraFlow
from xattn.models.bria import Bria
from xattn.models.bria_fibo import BriaFibo
from xattn.models.chroma import Chroma
from xattn.models.cogvideox import CogVideoX
from xattn.models.cogview import CogView3, CogView4
from xattn.models.cosmos import Cosmos
from xattn.models.cosmos3 import Cosmos3
from xattn.models.denoisers import REFUSED
from xattn.models.easy_animate import EasyAnimate
from xattn.models.ernie_image import ErnieImage
from xattn.models.family import Encoding, Family
from xattn.models.flux import Flux
from xattn.models.flux2 import Flux2
from xattn.models.helios import Helios
from xattn.models.hidream import HiDream
from xattn.models.hunyuan_dit import HunyuanDiT
from xattn.models.hunyuan_image import HunyuanImage
from xattn.models.hunyuan_video import HunyuanVideo
from xattn.models.hunyuan_video15 import HunyuanVideo15
from xattn.models.ideogram4 import Ideogram4
from xattn.models.joy_image import JoyImageEdit, JoyImageEditPlus
from xattn.models.kandinsky5 import Kandinsky5
from xattn.models.kandinsky6 import Kandinsky6
from xattn.models.krea2 import Krea2
from xattn.models.latte import Latte
from xattn.models.longcat_image import LongCatImage
from xattn.models.ltx2 import LTX2
from xattn.models.ltx_video import LTXVideo
from xattn.models.lumina2 import Lumina2
from xattn.models.lumina_next import LuminaNext
from xattn.models.mochi import Mochi
from xattn.models.motif_video import MotifVideo
from xattn.models.nucleus import Nucleus
from xattn.models.omnigen import OmniGen
from xattn.models.ovis_image import OvisImage
from xattn.models.pixart import PixArt
from xattn.models.prx import PRX
from xattn.models.qwen_image import QwenImage
from xattn.models.qwen_image21 import QwenImage21
from xattn.models.sana import Sana
from xattn.models.sana_video import SanaVideo
from xattn.models.sana_wm import SanaWM
from xattn.models.sd3 import SD3
from xattn.models.unet import UNets
from xattn.models.wan import Wan, WanAnimate
from xattn.models.z_image import ZImage

FAMILIES: tuple[Family, ...] = (
    UNets(),
    SD3(),
    Flux(),
    PixArt(),
    Sana(),
    HunyuanDiT(),
    LuminaNext(),
    Chroma(),
    Bria(),
    QwenImage(),
    QwenImage21(),
    AuraFlow(),
    CogView3(),
    CogView4(),
    Lumina2(),
    ZImage(),
    PRX(),
    Kandinsky5(),
    Kandinsky6(),
    Flux2(),
    OmniGen(),
    OvisImage(),
    LongCatImage(),
    HiDream(),
    JoyImageEdit(),
    JoyImageEditPlus(),
    HunyuanImage(),
    Krea2(),
    AnimateDiff(),
    Latte(),
    Allegro(),
    SanaVideo(),
    SanaWM(),
    BriaFibo(),
    ErnieImage(),
    Nucleus(),
    Ideogram4(),
    Wan(),
    WanAnimate(),
    Helios(),
    AnyFlow(),
    AnyFlowFAR(),
    LTXVideo(),
    LTX2(),
    CogVideoX(),
    Cosmos(),
    Cosmos3(),
    HunyuanVideo(),
    HunyuanVideo15(),
    EasyAnimate(),
    Mochi(),
    MotifVideo(),
)
"""A row for each family."""


def family_of(denoiser: nn.Module) -> Family:
    """Return the family of a denoiser, by its class or a base class.

    Raises:
        TypeError: no family supports it.
    """
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    why = ""
    for kind in type(model).__mro__:
        for family in FAMILIES:
            if kind.__name__ in family.classes:
                return family
        if kind.__name__ in REFUSED:
            why = f": {REFUSED[kind.__name__]}"
            break
    if not why and hasattr(model, "down_blocks"):  # a custom UNet class
        return FAMILIES[0]
    known = ", ".join(name for family in FAMILIES for name in family.classes)
    raise TypeError(
        f"{type(model).__name__} is not a supported denoiser{why}; the supported classes are: "
        f"{known}"
    )


def encoders_of(family: Family) -> tuple[str, ...]:
    """Return the names of the methods by which a family's pipelines encode prompts."""
    return family.encoders if isinstance(family, Encoding) else ("encode_prompt",)


ENCODERS = frozenset(name for family in FAMILIES for name in encoders_of(family))
"""The names of all methods by which pipelines encode prompts."""


def family_of_pipeline(pipe: Any) -> Family:
    """Return the family of a pipeline's denoiser.

    Raises:
        TypeError: the pipeline has no supported denoiser with a text encoder.
    """
    for name in ("unet", "transformer", "transformer_2"):
        denoiser = getattr(pipe, name, None)
        if isinstance(denoiser, nn.Module) and any(hasattr(pipe, encoder) for encoder in ENCODERS):
            return family_of(denoiser)
    raise TypeError(
        f"{type(pipe).__name__} has no denoiser with a text encoder that xattn knows; pass a "
        "pipeline of Stable Diffusion, FLUX.1 or another listed in docs/compatibility.md, or "
        "xattn.Loop(unet, tokenizer=, prompt=) for a sampling loop of your own"
    )
