"""The blocks within which groups of pixels stand for one another."""

from dataclasses import dataclass

# Groups of pixels are compared with those of their block: of so many frames and, at most, neighbouring places. It keeps
# at most BLOCK_SHARE times its share of them, which bounds the picks that follow one another.
BLOCK_FRAMES, BLOCK_PLACES, BLOCK_SHARE = 8, 256, 2
# By how much pixels are scaled before they are squared: float32 holds the sums of squares of what is at most MOST.
SHRINK = 2.0**-6


@dataclass(frozen=True)
class Blocks:
    """How a video of T frames of P groups is divided: into runs of neighbouring places over frames that follow.

    frames, places: T and P.  runs: of places, alike up to one.
    """

    frames: int
    places: int

    @property
    def runs(self) -> int:
        return -(-self.places // BLOCK_PLACES)

    @property
    def count(self) -> int:
        return -(-self.frames // BLOCK_FRAMES) * self.runs

    @property
    def largest(self) -> int:
        """The groups of the largest block."""
        return min(self.frames, BLOCK_FRAMES) * -(-self.places // self.runs)

    def size(self, block: int) -> int:
        """The groups of a block: those of the first frames come first, run by run."""
        begin, run = BLOCK_FRAMES * (block // self.runs), block % self.runs
        places = (run + 1) * self.places // self.runs - run * self.places // self.runs
        return min(BLOCK_FRAMES, self.frames - begin) * places

    def most(self, groups: int, total: int) -> int:
        """How many of the `groups` of a block may be kept of `total` in all."""
        return min(groups, -(-BLOCK_SHARE * total * groups // (self.frames * self.places)))
