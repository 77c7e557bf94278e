"""Natural shots with known cuts and hand-drawn boxes, as a pretrained network sees them: docs/natural.md.

    found = evaluate_natural(NaturalPlan("dev", (0.1, 0.05), {"mine": lambda keep: Prune(keep)}))

It tells what is left of each shot, of what stands still and of what moves. No language model, so no answers.
"""

from vidsieve.evaluation.natural.runner import NaturalPlan, evaluate_natural

__all__ = ["NaturalPlan", "evaluate_natural"]
