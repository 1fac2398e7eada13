"""A camera that is none: images of folders come to their products again and again, so that there is much to see."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from ..listing import list_images
from .judge import Busy
from .service import Service
from .uploads import check_image

__all__ = ["Playback"]

DEFECTIVE = 0.1  # share of the parts


class Playback:
    """Sends images to products, one after another, in a random order: nine of ten are good. See `service.Companion`.

    Args:
        service: what judges them.
        folders: by product, folders of test images; those in one named good are good.
        seconds: between two images.
    """

    def __init__(self, service: Service, folders: dict[str, Path], seconds: float = 2) -> None:
        self.service, self.seconds = service, seconds
        found = [(name, path) for name, folder in folders.items() for path in list_images(folder)]
        self.good = [(name, path) for name, path in found if path.parent.name == "good"]
        self.defective = [(name, path) for name, path in found if path.parent.name != "good"]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play, name="uflow-playback")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ending.set()
        self._thread.join()

    def _play(self) -> None:
        rng = random.Random(0)
        while not self._ending.wait(self.seconds):
            name, path = rng.choice(self.defective if rng.random() < DEFECTIVE else self.good)
            judge = self.service.judges[name]
            try:
                judge.enter()
            except Busy:
                continue
            content = path.read_bytes()
            judge.submit(f"{path.parent.name}/{path.name}", content, check_image(content))
