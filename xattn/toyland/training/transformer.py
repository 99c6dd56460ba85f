"""Toyland's joint-attention model: an SD3 transformer and its two text encoders.

Without a T5, :class:`~diffusers.StableDiffusion3Pipeline` puts 256 zero vectors behind the CLIP
positions. Their keys and values are the same in every block, so here one vector stands for all of
them, with log 256 added to its key's logit: the same model, exactly, at a fifth of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from .autoencoder import LATENT_CHANNELS
from .loop import Batch, Trainable, tokenize
from .rollouts import Rollouts
from .teacher import Lesson, Lessons, Teacher

PROMPT_LENGTH = 32
"""Positions of a prompt with both ends; the longest caption of a hard scene takes 28."""
T5_LENGTH = 256
"""Zero vectors that the pipeline puts where T5's text would stand."""
ENCODER_DIM = 64  # of each of the two text encoders
LONGEST_WAVE = 30  # wavelengths of the positions: 6 to 190 tokens
PATCHES = 8  # of a side
CODE_SCALE = 1.5
LEVEL_SHIFT = 0.4  # of the levels' logits, towards noise
UNPROMPTED_SHARE = 0.2  # of the predictions' loss
CHANGE_WEIGHT = 2.0
"""Of the error in what the caption changes, beside that of the predictions themselves."""


def build_transformer() -> SD3Transformer2DModel:
    """Build the untrained denoiser: 5.1 M parameters, four blocks over 8 x 8 patches."""
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=2 * ENCODER_DIM,
        caption_projection_dim=192,
        pooled_projection_dim=2 * ENCODER_DIM,
        out_channels=LATENT_CHANNELS,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, parameter in model.named_parameters():  # each block starts as the identity
        if name.startswith("proj_out.") or (".norm1" in name and ".linear." in name):
            torch.nn.init.zeros_(parameter)
    tell_patches_apart(model.pos_embed)
    return model


@torch.no_grad()
def tell_patches_apart(embedding: Any) -> None:
    """Add to a transformer's sinusoids of positions a code of each row and each column.

    Sinusoids are made for hundreds of positions: over 8 they are all but straight lines, in which
    no query finds its neighbour. Codes of different rows, and of different columns, are
    orthogonal; they lie in sixteen directions drawn at random.
    """
    side, weight = embedding.pos_embed_max_size, embedding.pos_embed  # (1, side * side, channels)
    waves = math.pi / PATCHES * torch.arange(1, PATCHES, 2)
    places = torch.arange(side) - (side - PATCHES) // 2  # the model takes the middle
    angles = places[:, None] * waves
    code = torch.cat([angles.cos(), angles.sin()], dim=1)  # (side, 8)
    rows, columns = code.repeat_interleave(side, 0), code.repeat(side, 1)
    drawn = torch.randn(weight.shape[-1], 2 * PATCHES, generator=torch.Generator().manual_seed(5))
    directions = torch.linalg.qr(drawn)[0]  # (channels, 16)
    weight += CODE_SCALE * torch.cat([rows, columns], dim=1) @ directions.T


def build_prompt_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Build one of the two text encoders: embeddings that the transformer mixes itself.

    The pipeline reads `hidden_states[-2]`: with one layer these are the embeddings of words and
    positions. The layer behind them is never read, and the pooled projection is zero, so that all
    that is known of the prompt goes through the tokens. Positions start as sinusoids.
    """
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=ENCODER_DIM,
            intermediate_size=8,
            projection_dim=ENCODER_DIM,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    waves = torch.exp(-torch.arange(0, ENCODER_DIM, 2) / ENCODER_DIM * math.log(LONGEST_WAVE))
    angles = torch.arange(PROMPT_LENGTH)[:, None] * waves
    with torch.no_grad():
        embeddings = embeddings_of(model)
        weight = embeddings.get_parameter("position_embedding.weight")
        weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(2))
        embeddings.get_parameter("token_embedding.weight").normal_(std=0.5)
        model.text_projection.weight.zero_()
    return model


def embeddings_of(model: torch.nn.Module) -> torch.nn.Module:
    """Embeddings of a CLIP text model, which sit one level deeper before transformers 5.3."""
    found: torch.nn.Module = next(
        m for name, m in model.named_modules() if name.endswith("embeddings")
    )
    return found


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler: rectified flow, with no shift towards noise for so small latents."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


class JointAttention:
    """An attention processor that lets the last text position count `T5_LENGTH` times.

    Explicit attention: with 97 positions it trains faster on a CPU than the fused one.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend over image and text; return both streams."""
        image, text = hidden_states, encoder_hidden_states
        heads = (attn.heads, -1)
        query = attn.norm_q(attn.to_q(image).unflatten(-1, heads))  # (batch, image, heads, dim)
        key = attn.norm_k(attn.to_k(image).unflatten(-1, heads))
        value = attn.to_v(image).unflatten(-1, heads)
        text_query = attn.norm_added_q(attn.add_q_proj(text).unflatten(-1, heads))
        text_key = attn.norm_added_k(attn.add_k_proj(text).unflatten(-1, heads))
        text_value = attn.add_v_proj(text).unflatten(-1, heads)
        query = torch.cat([query, text_query], 1).transpose(1, 2)  # (batch, heads, joint, dim)
        key = torch.cat([key, text_key], 1).transpose(1, 2)
        value = torch.cat([value, text_value], 1).transpose(1, 2)
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        bias = torch.zeros(logits.shape[-1], device=logits.device)
        bias[-1] = math.log(T5_LENGTH)
        made = (logits + bias).softmax(-1) @ value
        made = made.transpose(1, 2).flatten(2)  # (batch, joint, channels)
        image, text = made[:, : image.shape[1]], made[:, image.shape[1] :]
        image = attn.to_out[0](image)
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return image, text


def lesson_of(batch: Batch, random: torch.Generator) -> Lesson:
    """Mix clean latents with noise; the velocity is noise minus clean latents.

    Levels are in equal slices of a logit-normal distribution (Esser et al. 2024, section 3.1),
    its middle at 0.6: what a caption asks for is decided at high levels.
    """
    clean, count = batch.clean, len(batch.clean)
    slices = (torch.arange(count) + torch.rand(count, generator=random)) / count
    levels = torch.special.ndtri(slices.clamp(1e-4, 1 - 1e-4)) + LEVEL_SHIFT
    levels = levels.sigmoid().to(clean.device)
    noise = torch.randn(clean.shape, generator=random).to(clean.device)
    noisy = torch.lerp(clean, noise, levels[:, None, None, None])
    velocity = noise - clean
    return Lesson(noisy, levels, batch.ids, velocity, velocity, torch.zeros_like(levels).bool())


class Transformer(Trainable):
    """Both text encoders and the transformer as one module, for one optimiser and one average."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_prompt_encoder(tokenizer)
        self.text_encoder_2 = build_prompt_encoder(tokenizer)
        self.transformer = build_transformer()
        self.empty = tokenize(tokenizer, [""], PROMPT_LENGTH)
        self.teacher: Teacher | None = None
        self.lessons = Lessons()
        self.rollouts = Rollouts()
        self.compiles = False
        self.compiled: Callable[..., Any] | None = None

    def prompt(self, ids: torch.Tensor) -> torch.Tensor:
        """Text as the transformer reads it, `(batch, 33, 128)`; the last position is zero."""
        parts = [embeddings_of(e)(ids) for e in (self.text_encoder, self.text_encoder_2)]
        text = torch.cat(parts, dim=-1)  # (batch, 32, 128)
        return torch.nn.functional.pad(text, (0, 0, 0, 1))

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity, noise minus clean latents; `timesteps` are in [0, 1000]."""
        text = self.prompt(ids)
        pooled = text.new_zeros(len(text), 2 * ENCODER_DIM)
        velocity: torch.Tensor = (self.compiled or self.transformer)(
            noisy, text, pooled, timesteps
        ).sample
        return velocity

    def both(
        self, noisy: torch.Tensor, levels: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the velocities with the caption and without it; `levels` are in [0, 1]."""
        empty = self.empty.to(ids.device).expand_as(ids)
        made = self(torch.cat([noisy] * 2), 1000 * torch.cat([levels] * 2), torch.cat([ids, empty]))
        prompted, unprompted = made.float().chunk(2)
        return prompted, unprompted

    def loss(self, batch: Batch, random: torch.Generator) -> torch.Tensor:
        """Squared error of the velocity with the caption and without it, and of their difference.

        Velocities are a teacher's predictions where there is a teacher, which alone knows the
        difference.
        """
        lesson = self._lesson(batch, random)
        made = self.both(lesson.noisy, lesson.levels, lesson.ids)
        prompted, unprompted = (
            velocity - target
            for velocity, target in zip(made, (lesson.target, lesson.unprompted), strict=True)
        )
        change = (prompted - unprompted).square().mean((1, 2, 3)) * lesson.taught
        loss: torch.Tensor = (
            torch.lerp(prompted.square().mean(), unprompted.square().mean(), UNPROMPTED_SHARE)
            + CHANGE_WEIGHT * change.mean()
        )
        return loss

    def _lesson(self, batch: Batch, random: torch.Generator) -> Lesson:
        teacher = self.teacher
        if teacher is None:
            return lesson_of(batch, random)
        return self.lessons.draw(
            lambda: self._taught(teacher, batch, random), len(batch.clean), random
        )

    @torch.no_grad()
    def _taught(self, teacher: Teacher, batch: Batch, random: torch.Generator) -> Lesson:
        """Make lessons: half of them of noised scenes, half where the model's drawings are."""
        count = len(batch.clean)
        noised = lesson_of(batch[: (count + 1) // 2], random)
        met, hard = self.rollouts.meet(batch[count // 2 :], self.both, random)
        asked = noised.followed_by(met)
        lesson = teacher.correct(asked, torch.cat([batch.hard[: len(noised)], hard]))
        # only a noised scene knows a velocity without a teacher
        known = torch.arange(len(asked), device=hard.device) < len(noised)
        return lesson[lesson.taught | known]

    def matrices(self) -> list[torch.nn.Parameter]:
        """Return the weights of the blocks' linear layers, but for those of the modulation."""
        return [
            weight
            for name, weight in self.transformer.transformer_blocks.named_parameters()
            if weight.ndim == 2 and ".norm1" not in name
        ]

    def begin(self, device: str) -> None:
        """Install the attention to which one vector stands for all of T5's."""
        self.transformer.set_attn_processor(JointAttention())
        if self.compiles:
            self.compiled = torch.compile(self.transformer.forward, dynamic=False)

    def end(self) -> None:
        """Put diffusers' own attention back."""
        self.transformer.set_attn_processor(JointAttnProcessor2_0())
        self.compiled = None
