"""Attention kernels side by side: sdpa and plain matrix products, forward and backward, on this machine's device.

    python benchmarks/attention.py

prints milliseconds, the median of interleaved runs, and their ratio: what ``_fastest`` in ldm/denoisers/attention.py
was chosen from.
"""

import time
from statistics import median

import torch

from ldm.cli import one_line_errors
from ldm.denoisers.attention import attention

SHAPES = ((64, 64), (16, 256), (4, 512), (2, 1024))  # rows, tokens
REPEATS = 9


def once(backend: str, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Milliseconds of one forward and backward pass with 4 heads of width 64."""
    q, k, v = (torch.randn(rows, 4, tokens, 64, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    settle(device)
    began = time.perf_counter()
    attention(q, k, v, backend=backend).sum().backward()
    settle(device)
    return 1_000 * (time.perf_counter() - began)


def settle(device: torch.device) -> None:
    """Wait for what a GPU has been asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads; rows x tokens, dtype: sdpa / math ms, sdpa over math")
    for rows, tokens in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            times: dict[str, list[float]] = {"sdpa": [], "math": []}
            for i in range(REPEATS + 2):
                for backend, taken in times.items():
                    measured = once(backend, rows, tokens, dtype, device)
                    if i >= 2:  # the first calls build kernels and warm caches
                        taken.append(measured)
            sdpa, math = median(times["sdpa"]), median(times["math"])
            print(f"{rows:4} x {tokens:4}, {dtype}: {sdpa:6.1f} / {math:6.1f} ms, {sdpa / math:.2f}")


if __name__ == "__main__":
    with one_line_errors():
        main()
