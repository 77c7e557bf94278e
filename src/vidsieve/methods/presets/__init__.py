"""Published methods, one paper a file, and the floors that they are compared with; each makes a method of a share.

    with vidsieve.presets.vidsieve(keep=0.1)(model) as trace: ...     # or vidsieve.attach(model, "vidsieve", keep=0.1)

They choose what the paper says, with an exact count. What a paper takes from elsewhere is said in each docstring, with
what stands in for it. Methods of others are written anew from their papers, to be read: what a choice costs here is not
what it costs in its authors' code.
"""

# The order is that of the table (registry.py): ours first, what it is compared with after it.
# isort: off
from vidsieve.methods.presets.default import vidsieve
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
    "divprune",
    "evs",
    "fastv",
    "fewer_frames",
    "flashvid",
    "framefusion",
    "hieravid",
    "pyramiddrop",
    "random",
    "uniform",
    "vidcom2",
    "vidsieve",
    "visionzip",
]
