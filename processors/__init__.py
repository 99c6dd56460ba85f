"""The custom AttentionProcessor classes: they wrap a layer's own and own its attention call."""

from xattn.processors.call import AttentionCall, Chain, Handler
from xattn.processors.wrapping import unwrap, wrap

__all__ = ["AttentionCall", "Chain", "Handler", "unwrap", "wrap"]
