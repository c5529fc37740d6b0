"""The name that Megatron-LM's users know."""

from .static import StaticEngine

MCoreEngine = StaticEngine
