"""A pipeline's own arguments, turned into those of a batch of siblings."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.api.editing import Session
from xattn.session.generators import Given, RowGenerators, row_generators


@dataclass(frozen=True)
class Batch:
    """A pipeline's own arguments, turned into those of a batch of siblings."""

    prompts: list[str]
    images: int
    generators: RowGenerators

    @classmethod
    def of(cls, pipe: Any, texts: list[str], generator: Given, options: Mapping[str, Any]) -> Batch:
        """Return the batch of some prompts, after checking the pipeline's arguments."""
        for name in ("prompt", "prompt_embeds", "pooled_prompt_embeds", "prompt_2", "prompt_3"):
            if options.get(name) is not None:
                raise ValueError(f"{name}= cannot be edited: pass the prompt as one text")
        several = generator is not None and not isinstance(generator, torch.Generator)
        given = len(generator) if several else None  # type: ignore[arg-type]
        images = options.get("num_images_per_prompt") or given or 1
        if given not in (None, images):
            raise ValueError(
                f"generator has {given} generators for num_images_per_prompt={images}: pass one "
                "for each image"
            )
        device = torch.device(pipe._execution_device)
        return cls(texts, images, row_generators(generator, images, len(texts), device))

    @property
    def rows(self) -> int:
        """Number of images to draw."""
        return len(self.prompts) * self.images

    def arguments(self, pipe: Any, session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for calling the pipeline."""
        known = inspect.signature(pipe.__call__).parameters
        arguments = dict(options)
        arguments.update(
            prompt=self.prompts,
            num_images_per_prompt=self.images,
            generator=self.generators,
            return_dict=True,
        )
        if "num_images_per_prompt" not in known:
            if self.images > 1:
                raise ValueError(
                    f"{type(pipe).__name__} draws one image of a prompt: pass one seed"
                )
            del arguments["num_images_per_prompt"]
        for name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3"):
            if options.get(name) is not None:
                arguments[name] = self._negative(name, options[name])
        if options.get("latents") is not None:
            arguments["latents"] = self._latents(options["latents"])
        # text-to-image ControlNets repeat their own image
        for name in ("image", "mask_image") if "strength" in known else ():
            if options.get(name) is not None:
                arguments[name] = self._repeated(options[name])
        if "images" in known and options.get("images"):  # all pictures of one prompt
            nested = isinstance(options["images"][0], list)
            arguments["images"] = list(options["images"] if nested else [options["images"]])
            arguments["images"] *= self.rows // len(arguments["images"])
        if session.must_blend:
            if "callback_on_step_end" not in known:
                raise ValueError(
                    f"{type(pipe).__name__} has no callback_on_step_end, which LocalBlend and "
                    "keep_source need"
                )
            arguments.update(_composed(session, options))
        return arguments

    def _negative(self, name: str, given: Any) -> Any:
        texts = [given] if isinstance(given, str) else list(given)
        if len(texts) != 1:
            raise ValueError(f"{name} has {len(texts)} texts; pass one for all images")
        return texts * len(self.prompts)

    def _latents(self, given: Tensor) -> Tensor:
        if len(given) not in (1, self.images):
            raise ValueError(
                f"latents has {len(given)} rows; pass one, or one for each of the {self.images} "
                "images of the source"
            )
        return given.repeat(self.rows // len(given), *[1] * (given.ndim - 1))

    def _repeated(self, given: Any) -> Any:
        """Repeat an image for every row: only then does each row's generator draw for it."""
        if isinstance(given, Tensor):
            single = given[None] if given.ndim == 3 else given
            return single.repeat(self.rows // len(single), *[1] * (single.ndim - 1))
        if isinstance(given, list | tuple):
            return list(given) * (self.rows // len(given))
        return [given] * self.rows


_PICTURE = "; to edit a picture use an image-to-image or inpainting pipeline (from_pipe)"
_ADVICE = {
    "image": _PICTURE,
    "mask_image": _PICTURE,
    "strength": _PICTURE,
    "steps": "; did you mean num_inference_steps?",
    "seed": "; pass generator=torch.Generator().manual_seed(...)",
}
_UNNAMED = ("callback", "callback_steps")  # older options that pipelines read from **kwargs


def refuse_unknown(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raise ValueError if the pipeline lacks an option and would silently ignore it."""
    known = list(options_of(type(pipe)))
    for name in options:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=3)
        advice = f"; did you mean {' or '.join(near)}?" if near else ""
        advice = _ADVICE.get(name, advice)
        raise ValueError(f"{name}= is not an option of {type(pipe).__name__}{advice}")


def pictures_of(output: Any) -> Any:
    """Return the images of a pipeline's result; Kandinsky 5 calls them by another name."""
    return output.images if hasattr(output, "images") else output.image


def options_of(kind: type) -> dict[str, Any]:
    """Return a pipeline class's options with their defaults, those of its base classes included."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        call = each.__dict__.get("__call__")
        parameters = inspect.signature(call).parameters if callable(call) else {}
        for name, parameter in parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                found = {**dict.fromkeys(_UNNAMED), **found}
            elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
                found.setdefault(name, parameter.default)
    return found


def _composed(session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return LocalBlend's callback, followed by the user's own."""
    own: Callable[..., dict[str, Any] | None] | None = options.get("callback_on_step_end")
    names = list(options.get("callback_on_step_end_tensor_inputs") or ["latents"])
    names = list(getattr(own, "tensor_inputs", None) or names)

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        blended = session.callback(pipe, index, timestep, tensors)
        if own is None:
            return blended
        wanted = {name: blended[name] for name in names}
        return {"latents": blended["latents"], **(own(pipe, index, timestep, wanted) or {})}

    return {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": list(dict.fromkeys(["latents", *names])),
    }
