"""Embeddings of videos before pruning, so that a second question about a video does not encode it again."""

from collections import OrderedDict

from torch import Tensor


class Unpruned:
    """The embeddings of the videos used last, as many as `limit` bytes of host memory hold.

    On the host, because vLLM has shared out the device's memory before the first request; and what runs in each of its
    workers must hold and drop the same videos, which follows from the order of requests alone.
    """

    def __init__(self, limit: int = 1 << 29) -> None:
        self.limit, self.bytes = limit, 0
        self._videos: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes | None) -> Tensor | None:
        """The embeddings (N, D) of a video on the host, if they are held."""
        if key is None or key not in self._videos:
            return None
        self._videos.move_to_end(key)
        return self._videos[key]

    def put(self, key: bytes | None, embeds: Tensor) -> None:
        """Hold the embeddings (N, D) of a video that is not held, and drop those not used for longest."""
        if key is None or key in self._videos or embeds.nbytes > self.limit:
            return
        self._videos[key] = embeds.detach().to("cpu", copy=True)
        self.bytes += embeds.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._videos.popitem(last=False)[1].nbytes
