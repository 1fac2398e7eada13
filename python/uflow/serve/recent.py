"""Images of the last parts, in memory: those that are not kept on the disk can be looked at for a while."""

from __future__ import annotations

import threading

__all__ = ["Recent"]


class Recent:
    """The last images, by the part's id; thread-safe.

    Args:
        count: images at most.
        size: bytes of all of them at most.
    """

    def __init__(self, count: int = 32, size: int = 32 << 20) -> None:
        self.count, self.size = count, size
        self._lock = threading.Lock()
        self._images: dict[int, bytes] = {}
        self._held = 0

    def put(self, part: int, content: bytes) -> None:
        """Remember an image as it came; the oldest ones are forgotten for it."""
        with self._lock:
            self._held += len(content) - len(self._images.pop(part, b""))
            self._images[part] = content
            while self._images and (len(self._images) > self.count or self._held > self.size):
                self._held -= len(self._images.pop(next(iter(self._images))))

    def find(self, part: int) -> bytes | None:
        """The image of a part; None where it is forgotten."""
        with self._lock:
            return self._images.get(part)

    def parts(self) -> list[int]:
        """Parts whose images are remembered, the last one first."""
        with self._lock:
            return list(reversed(self._images))
