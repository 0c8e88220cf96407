"""What a batch costs in the laboratory: l(b) = alpha b + beta, and what follows from it."""

from __future__ import annotations

import math
from typing import NamedTuple

MS = 1_000_000


class Law(NamedTuple):
    """l(b) in ns, the deadline that belongs to it (a duration), and the sizes that a worker would have warmed."""

    name: str
    alpha_ns: int
    beta_ns: int
    deadline_ns: int
    sizes: tuple[int, ...]

    def time_ns(self, size: int) -> int:
        """l(size)."""
        return self.alpha_ns * size + self.beta_ns

    @property
    def size_max(self) -> int:
        """Bmax: the largest batch that is done within the deadline."""
        return (self.deadline_ns - self.beta_ns) // self.alpha_ns

    def size_best(self, worker_count: int, model_count: int = 1) -> int:
        """B*: the largest batch with (1 + M/N) l(b) <= D; at least 1.

        Source: Nexus (SOSP 2019) for M = N = 1; Symphony (arXiv 2308.07470) for N workers.
        """
        room = self.deadline_ns / (1 + model_count / worker_count)
        return max(1, math.floor((room - self.beta_ns) / self.alpha_ns))

    def capacity(self, worker_count: int) -> float:
        """Images/s: N Bmax / l(Bmax), an upper bound on the rate of answers in time."""
        return worker_count * self.size_max / self.time_ns(self.size_max) * 1e9


T4 = Law("t4", 770_000, 2_900_000, 50 * MS, (1, 2, *range(4, 61, 4)))
"""ResNet-50 on a T4, beta/alpha = 3.8; capacity 1223 images/s.

Source: a fit to NVIDIA DeepLearningExamples, Triton with ONNX Runtime and TensorRT (FP16); R2 = 0.9995.
"""

GPU = Law("gpu", 12_500, 500_000, 15 * MS, (1, 2, 4, 8, 16, 32, *range(64, 1153, 64)))
"""A large GPU, where batching pays most: beta/alpha = 40; capacity 77,333 images/s."""
