"""Attention processors that run the layer's own, and take over its attention call."""

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.chain import Chain
from xattn.processors.wrapping import unwrap, wrap

__all__ = ["AttentionCall", "Chain", "Handler", "unwrap", "wrap"]
