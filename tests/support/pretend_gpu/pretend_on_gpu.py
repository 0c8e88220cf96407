"""The fake backend on a GPU takes its `memory_size` on the card, through the real seam to CUDA."""

from gpuworker.fake_backend import FakeBackend
from gpuworker.gpu.card import Card, Memory


class FakeOnGpu(FakeBackend):
    """As the fake backend, and a context and bytes of the card until the process ends."""

    def load(self, report):
        Card.open()
        self._held = Memory.on_device(self._fake.memory_size)
        super().load(report)
        self._ballast = None
