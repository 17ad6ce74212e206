"""The packages that the rest of this folder stands on, or one line that says how to get them."""

from pdlib.interop import InteropError

try:
    import diffusers
    import huggingface_hub
except ImportError:
    raise InteropError("models of diffusers need that package: pip install 'pdlib[diffusers]'") from None

__all__ = ["diffusers", "huggingface_hub"]
