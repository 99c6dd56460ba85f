"""The custom AttentionProcessor classes: they wrap a layer's own and own its attention call."""

from xattn.processors.wrapping import Handler, unwrap, wrap

__all__ = ["Handler", "unwrap", "wrap"]
