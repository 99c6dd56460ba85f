"""Every denoiser class of diffusers, a line each: recorded, or the reason why it is refused.

The table in ``docs/compatibility.md`` is written from here: ``python -m tests.denoisers``.
"""

from __future__ import annotations

RECORDED: dict[str, str] = {
    "HunyuanImageTransformer2DModel": "HunyuanImage 2.1",
    "HiDreamImageTransformer2DModel": "HiDream-I1",
    "LongCatImageTransformer2DModel": "LongCat-Image and its Edit",
    "OmniGenTransformer2DModel": "OmniGen, from text and with pictures",
    "OvisImageTransformer2DModel": "Ovis-Image",
    "Flux2Transformer2DModel": "FLUX.2, FLUX.2 Klein",
    "CogView4Transformer2DModel": "CogView4",
    "CogView3PlusTransformer2DModel": "CogView3+",
    "AllegroTransformer3DModel": "Allegro",
    "LatteTransformer3DModel": "Latte",
    "UNetMotionModel": "AnimateDiff with Stable Diffusion 1",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "BriaFiboTransformer2DModel": "Bria FIBO",
    "BriaTransformer2DModel": "Bria 3.2",
    "ChromaTransformer2DModel": "Chroma",
    "QwenImageTransformer2DModel": "Qwen-Image, Qwen-Image-Edit",
    "QwenImage21Transformer2DModel": "Qwen-Image 2.1, from text and from pictures",
    "ErnieImageTransformer2DModel": "ERNIE-Image",
    "FluxTransformer2DModel": "FLUX.1",
    "HunyuanDiT2DModel": "Hunyuan-DiT",
    "JoyImageEditTransformer3DModel": "JoyImage Edit, from text and with a picture",
    "JoyImageEditPlusTransformer3DModel": "JoyImage Edit Plus, with several pictures",
    "Krea2Transformer2DModel": "Krea 2",
    "Kandinsky5Transformer3DModel": "Kandinsky 5 of images and videos",
    "Lumina2Transformer2DModel": "Lumina-Image 2.0",
    "LuminaNextDiT2DModel": "Lumina-Next",
    "PixArtTransformer2DModel": "PixArt alpha, Sigma",
    "PRXTransformer2DModel": "PRX",
    "SanaVideoTransformer3DModel": "SANA-Video",
    "SanaWMTransformer3DModel": "SANA-WM, a given frame and a camera's path",
    "SanaTransformer2DModel": "Sana, Sana Sprint",
    "SD3Transformer2DModel": "Stable Diffusion 3, 3.5",
    "UNet2DConditionModel": "Stable Diffusion 1, 2, XL, DeepFloyd IF",
    "ChronoEditTransformer3DModel": "ChronoEdit",
    "CogVideoXTransformer3DModel": "CogVideoX, 1.5",
    "HunyuanVideoTransformer3DModel": "HunyuanVideo, also with a frame given",
    "LTXVideoTransformer3DModel": "LTX-Video, also with frames given",
    "MochiTransformer3DModel": "Mochi 1",
    "SkyReelsV2Transformer3DModel": "SkyReels-V2",
    "WanTransformer3DModel": "Wan 2.1, 2.2: text, image and video to video",
    "WanAnimateTransformer3DModel": "Wan Animate, a run for each segment",
    "WanVACETransformer3DModel": "Wan VACE",
    "NucleusMoEImageTransformer2DModel": "Nucleus-Image",
    "Ideogram4Transformer2DModel": "Ideogram 4",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo 1.5",
    "EasyAnimateTransformer3DModel": "EasyAnimate",
    "ConsisIDTransformer3DModel": "ConsisID",
    "LTX2VideoTransformer3DModel": "LTX-2, also with frames given, with sound that isn't recorded",
    "CosmosTransformer3DModel": "Cosmos Predict 1, 2, 2.5",
    "Cosmos3OmniTransformer": "Cosmos 3, also with frames given, with sound that isn't recorded",
    "AnyFlowTransformer3DModel": "AnyFlow",
    "HeliosTransformer3DModel": "Helios, a run for each window and stage",
    "AnyFlowFARTransformer3DModel": "AnyFlow FAR, a run for each chunk",
    "Kandinsky6Transformer3DModel": "Kandinsky 6, also from a picture; its sound isn't recorded",
    "MotifVideoTransformer3DModel": "Motif-Video",
    "ZImageTransformer2DModel": "Z-Image, Z-Image Turbo",
}
"""What each class draws whose attention is recorded exactly."""

SINCE: dict[str, str] = {
    "LongCatImageTransformer2DModel": "0.37",
    "LTX2VideoTransformer3DModel": "0.37",
    "ErnieImageTransformer2DModel": "0.38",
    "NucleusMoEImageTransformer2DModel": "0.38",
    "AnyFlowTransformer3DModel": "0.39",
    "Cosmos3OmniTransformer": "0.39",
    "HeliosTransformer3DModel": "0.37",
    "AnyFlowFARTransformer3DModel": "0.39",
    "Ideogram4Transformer2DModel": "0.39",
    "JoyImageEditTransformer3DModel": "0.39",
    "Krea2Transformer2DModel": "0.39",
    "MotifVideoTransformer3DModel": "0.39",
    "JoyImageEditPlusTransformer3DModel": "0.40",
    "QwenImage21Transformer2DModel": "0.41",
    "Kandinsky6Transformer3DModel": "0.42",
    "SanaWMTransformer3DModel": "0.42",
}
"""The first diffusers with a recorded class, where that is not the oldest of pyproject.toml."""

INVERTED = ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel")
"""Classes whose photographs can be inverted."""

STREAMED = ("SD3Transformer2DModel", "FluxTransformer2DModel")
"""Transformers whose blocks can pass a text of their own beside the prompt's."""

ASKED = ("UNet2DConditionModel", *STREAMED)
"""Classes that can be asked for words which nobody prompted."""

_WHOLE = "a video's maps are recorded alone"

UNEDITED: dict[str, str] = {
    "AuraFlowTransformer2DModel": "its registers are keys of neither text nor image",
    "OmniGenTransformer2DModel": "its time token is a key of neither text nor image",
    "HunyuanImageTransformer2DModel": "its words stand at places that differ from row to row",
    "Lumina2Transformer2DModel": "its words stand at places that differ from row to row",
    "ZImageTransformer2DModel": "its rows hold their text without its padding",
    "HunyuanVideo15Transformer3DModel": _WHOLE,
    "EasyAnimateTransformer3DModel": _WHOLE,
    "LTX2VideoTransformer3DModel": _WHOLE,
    "CosmosTransformer3DModel": "its images are read as videos, whose maps are recorded alone",
    "Cosmos3OmniTransformer": "its pipeline draws one image or video at a time",
    "AnyFlowTransformer3DModel": _WHOLE,
    "AnyFlowFARTransformer3DModel": _WHOLE,
    "HeliosTransformer3DModel": _WHOLE,
    "Kandinsky6Transformer3DModel": _WHOLE,
    "MotifVideoTransformer3DModel": _WHOLE,
    "WanTransformer3DModel": _WHOLE,
    "WanAnimateTransformer3DModel": _WHOLE,
    "AllegroTransformer3DModel": _WHOLE,
    "LatteTransformer3DModel": _WHOLE,
    "UNetMotionModel": _WHOLE,
    "SanaVideoTransformer3DModel": _WHOLE,
    "SanaWMTransformer3DModel": _WHOLE,
    "LTXVideoTransformer3DModel": _WHOLE,
    "CogVideoXTransformer3DModel": _WHOLE,
    "HunyuanVideoTransformer3DModel": _WHOLE,
    "MochiTransformer3DModel": _WHOLE,
}
"""Why the first class of a family that is recorded isn't edited."""

_MODULAR = "only modular pipelines have it, which xattn can't follow"
_OLD = "diffusers has deprecated its pipelines"
_SOUND = "it makes sound"
_PART = "it is a part of other models"
_UNUSED = "no pipeline of diffusers calls it with a text"

REFUSED: dict[str, str] = {
    "AceStepTransformer1DModel": _SOUND,
    "BriaFibo2Transformer2DModel": "it reads a summary of the text, not its words",
    "DiTTransformer2DModel": "it draws classes by number, without a text",
    "DreamLiteTransformer2DModel": _UNUSED,
    "DreamLiteUNetModel": _UNUSED,
    "DualTransformer2DModel": _PART,
    "Flux3Transformer2DModel": _MODULAR,
    "GlmImageTransformer2DModel": "it reads letters to be drawn; the prompt goes to another model",
    "HunyuanVideoFramepackTransformer3DModel": "its frames are packed at several scales",
    "I2VGenXLUNet": _OLD,
    "Kandinsky3UNet": "its blocks are not a UNet2DConditionModel's",
    "Kandinsky6SRTransformer3DModel": "it enlarges a video, and reads no text",
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxH3Transformer3DModel": _MODULAR,
    "MiniMaxMusic3RVQDepthDecoder": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "MotionAdapter": _PART,
    "PriorTransformer": "it makes image embeddings, not images",
    "RFD4ProteinaTransformer": "it designs proteins",
    "SanaWMLTX2RefinerTransformer3DModel": "it refines videos inside the pipeline of another model",
    "StableAudio3DiTModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "StableCascadeUNet": "its blocks are not a UNet2DConditionModel's",
    "T5FilmDecoder": _SOUND,
    "Transformer2DModel": _PART,
    "TransformerTemporalModel": _PART,
    "UNet1DModel": "it reads no text",
    "UNet2DModel": "it reads no text",
    "UNet3DConditionModel": _OLD,
    "UNetSpatioTemporalConditionModel": "it reads an image, and no text",
    "UVit2DModel": "it fills in discrete tokens and has no latents",
    "WanAnimate2Transformer3DModel": _MODULAR,
}
"""Why each of the others is refused, as the end of the sentence that says so."""
