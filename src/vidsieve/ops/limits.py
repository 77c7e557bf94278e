"""Limits that belong to the meaning of the operations, whichever implementation runs."""

# A token whose squared distance to the span of the picks is below this share of its squared length adds nothing that
# bf16 features could tell from rounding: it is exhausted, and ranks behind every token that is not.
EXHAUSTED = 1e-5
# Scores within this share of the best are a tie, and a tie goes to the earlier token: so rounding cannot decide between
# duplicates. A share, because relevance may be small everywhere and enters squared.
TIE = 1e-6
# What keeps a ratio of two means of persistence from being one of rounding, where a whole frame is new.
STAYS = 0.05
GOLDEN, SILVER = 2654435769, 1779033704  # 2^32 times (sqrt(5) - 1) / 2 and sqrt(2) - 1, whose multiples spread evenly
# What centring leaves of a token that equals the mean is rounding, not a direction: below this share of the mean's
# length it counts as zero.
NOISE = 1e-5
# A token is zero or of a length in between: float32 then holds its square, that of a difference of two, and that of
# what NOISE leaves of it, features wide as they are. `Measures.nonfinite` says which are not, and which are NaN or inf.
LEAST, MOST = 1e-12, 1e18
NON_FINITE, OUT_OF_RANGE, NONFINITE_PROMPT = 1, 2, 4  # its bits; the last where the cosine to the prompt is not finite

# The threshold that leaves a count is sought among the bits of float32, which are in the order of the numbers: SECTIONS
# at a time, so many bits apart in each sweep. The first sweep has 0, every power of two and inf; the last leaves 2^-16.
SECTIONS, WIDTHS = 256, (1 << 23, 1 << 15, 1 << 7)
