"""Prune by attention, as several papers do."""

from vidsieve.methods.budget import Proportional
from vidsieve.methods.prune import Prune
from vidsieve.methods.relevance import PromptAttention
from vidsieve.methods.segment import Whole
from vidsieve.methods.selection import TopRelevance


def attended(keep: float) -> Prune:
    """Keep the tokens that the last token of the prompt attends to most."""
    return Prune(keep, Whole(), Proportional(), PromptAttention("last"), TopRelevance())
