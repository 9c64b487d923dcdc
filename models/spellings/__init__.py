"""Hand-made graphs, one pattern each, for spellings that today's exporters no longer or rarely write."""

from . import attentions, gelus, norms, tokens, windows
from .graph import Spelling

SPELLINGS = [s for module in (norms, gelus, attentions, windows, tokens) for s in module.ALL]

__all__ = ["SPELLINGS", "Spelling"]
