"""Wrappers of two threads on one module: none is lost, and the model's own processor comes back."""

from __future__ import annotations

import threading
import time
from typing import Any

from diffusers.models.attention_processor import AttnProcessor2_0

from xattn.processors.chain import Chain
from xattn.processors.install import install, remove
from xattn.processors.wrapping import chain_of, is_wrapped, unwrap


class Slow:
    """An attention module that lets other threads in after its processor was read."""

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}
        self.own = self.held = AttnProcessor2_0()

    @property
    def processor(self) -> Any:
        held = self.held
        time.sleep(0.001)
        return held

    @processor.setter
    def processor(self, processor: Any) -> None:
        self.held = processor


def in_threads(work: Any, chains: list[Chain]) -> None:
    threads = [threading.Thread(target=work, args=(chain,)) for chain in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_install_at_once_lose_no_wrapper() -> None:
    module = Slow()
    chains = [Chain(f"layer {n}", 2, []) for n in range(4)]
    in_threads(lambda chain: install(module, chain), chains)
    found, processor = [], module.processor
    while is_wrapped(processor):
        found.append(chain_of(processor))
        processor = unwrap(processor)
    assert set(found) == set(chains)
    in_threads(lambda chain: remove(module, chain), chains)
    assert module.processor is module.own
