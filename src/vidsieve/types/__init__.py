"""The nouns: what flows from a file to a reduction. They hold, they do not decide."""
