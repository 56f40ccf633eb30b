"""What a run does per second: samples, tokens, model FLOPs against the device's peak, and the share spent waiting for data."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Dense bf16 tensor peaks without sparsity, from the vendors' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "L4": 121e12,
    "V100": 125e12,
}


def device_peak_flops(given: float | None) -> float | None:
    """The given peak, or that of a known GPU; None where nobody knows it, so that no invented MFU is shown."""
    import torch

    if given is not None:
        return given
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class Throughput:
    """Counts between two logs; `report` sums over all ranks and starts again."""

    def __init__(self, peak_flops: float | None) -> None:
        self.peak_flops = peak_flops
        self._reset()

    def _reset(self) -> None:
        self.samples = self.tokens = 0
        self.flops = self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, samples: int, tokens: int, flops: float) -> None:
        self.samples += samples
        self.tokens += tokens
        self.flops += flops

    def leave_out(self, seconds: float) -> None:
        """Seconds in which something else was done than to train."""
        self.started += seconds

    def report(self, device: "torch.device") -> dict[str, float]:
        """samples/s and tokens/s (padding not counted) over all ranks, data-wait share, peak memory, MFU where the peak is known."""
        import torch
        import torch.distributed as dist

        seconds = time.perf_counter() - self.started
        counts = torch.tensor(
            [self.samples, self.tokens, self.flops, self.waited, 1.0], dtype=torch.float64, device=device
        )
        if dist.is_initialized():
            dist.all_reduce(counts)
        samples, tokens, flops, waited, ranks = counts.tolist()
        logs = {
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait_share": waited / ranks / seconds,
            "memory_gib": peak_memory_gib(),
        }
        if self.peak_flops:
            logs["mfu"] = flops / seconds / (self.peak_flops * ranks)
        self._reset()
        return logs


def peak_memory_gib() -> float:
    """Peak memory of this process: allocated on the GPU, or resident on a CPU machine."""
    import torch

    from drive_vlm.launch.manifest import peak_resident_bytes

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_resident_bytes() / 2**30
