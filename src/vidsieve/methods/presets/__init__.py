"""Published methods, one paper a file, and the baselines that they are compared with.

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace: ...     # or vidsieve.attach(model, "vidsieve", keep=0.1)

Each is a function from a share to a method. They select what the paper says, with an exact count; each docstring says
what differs from the paper. Methods of others are written anew from their papers, to be read: their speed here is not
that of their authors' code.
"""

# This is the order of the table (registry.py): the default first, then what it is compared with.
# isort: off
from vidsieve.methods.presets.default import vidsieve
from vidsieve.methods.presets.moments import moments
from vidsieve.methods.presets.distinct import distinct
from vidsieve.methods.presets.cdpruner import cdpruner
from vidsieve.methods.presets.divprune import divprune
from vidsieve.methods.presets.floors import uniform, random
from vidsieve.methods.presets.framefusion import framefusion
from vidsieve.methods.presets.hieravid import hieravid
from vidsieve.methods.presets.fastv import fastv
from vidsieve.methods.presets.pyramiddrop import pyramiddrop
from vidsieve.methods.presets.evs import evs
from vidsieve.methods.presets.vidcom2 import vidcom2
from vidsieve.methods.presets.visionzip import visionzip
from vidsieve.methods.presets.dart import dart
from vidsieve.methods.presets.flashvid import flashvid
from vidsieve.methods.presets.fewer_frames import fewer_frames
# isort: on

__all__ = [
    "cdpruner",
    "dart",
    "distinct",
    "divprune",
    "evs",
    "fastv",
    "fewer_frames",
    "flashvid",
    "framefusion",
    "hieravid",
    "moments",
    "pyramiddrop",
    "random",
    "uniform",
    "vidcom2",
    "vidsieve",
    "visionzip",
]
