"""Attention backends that nobody can see are refused before anything is drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from torch import nn

from xattn.processors.call import Handler
from xattn.processors.chain import Chain
from xattn.processors.install import install, remove

BACKENDS = attention_dispatch.AttentionBackendName


class Processor:
    """A processor of diffusers' newer kind: the backend is its own, or the process's."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


def layer(**attributes: Any) -> Any:
    module: Any = nn.Module()
    module.processor = Processor()
    for name, value in attributes.items():
        setattr(module.processor, name, value)
    return module


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attention_dispatch._AttentionBackendRegistry, "_active_backend", BACKENDS.FLASH
    )


@pytest.mark.usefixtures("flash")
def test_the_process_wide_backend_is_refused_where_a_processor_has_none() -> None:
    with pytest.raises(TypeError, match="backend 'flash', out of xattn's reach, as it is this"):
        install(layer(), Chain("layer", 1, [Handler()]))
    own = layer(_attention_backend=BACKENDS.NATIVE)
    install(own, chain := Chain("layer", 1, [Handler()]))
    remove(own, chain)
    assert type(own.processor) is Processor


def test_a_backend_chosen_inside_the_block_is_refused_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, chain = layer(), Chain("layer", 1, [Handler()])
    install(module, chain)
    install(module, chain)
    registry = attention_dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", BACKENDS.SAGE)
    with pytest.raises(TypeError, match="backend 'sage'"):
        install(module, chain)


def test_context_parallelism_is_refused() -> None:
    module = layer(_parallel_config=SimpleNamespace())
    with pytest.raises(TypeError, match="on several devices"):
        install(module, Chain("layer", 1, [Handler()]))


@pytest.mark.usefixtures("flash")
def test_processors_that_know_no_backends_take_no_notice() -> None:
    class Older:
        def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    module: Any = nn.Module()
    module.processor = Older()
    install(module, Chain("layer", 1, [Handler()]))
