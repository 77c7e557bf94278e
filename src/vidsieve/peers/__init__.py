"""Other people's methods, written anew from their papers, to be compared with: one rule a file.

    from vidsieve.peers import METHODS
    with METHODS["evs"](keep=0.1)(model) as trace: ...

They choose what the paper says, with an exact count, at the one place where all methods here act: between the vision
tower and the language model. What a paper takes from elsewhere is said in each docstring, with what stands in for it.
They are written to be read: what a choice costs here is not what it costs in its authors' code.
"""

from collections.abc import Callable

from vidsieve.peers.dart import dart
from vidsieve.peers.evs import evs
from vidsieve.peers.flashvid import flashvid
from vidsieve.peers.vidcom2 import vidcom2
from vidsieve.peers.visionzip import visionzip
from vidsieve.reducer import Reducer

__all__ = ["METHODS", "dart", "evs", "flashvid", "vidcom2", "visionzip"]

METHODS: dict[str, Callable[[float], Reducer]] = {
    method.__name__: method for method in (evs, vidcom2, visionzip, dart, flashvid)
}
