"""Attention kernels side by side: sdpa and plain matrix products, in training and in drawing, on this machine's device.

    python benchmarks/attention.py

prints milliseconds, the median of interleaved runs, and their ratio: what ``_fastest`` in ldm/denoisers/attention.py
was chosen from.
"""

import time
from itertools import product
from statistics import median

import torch

from ldm.cli import one_line_errors
from ldm.denoisers.attention import attention

SHAPES = ((64, 64), (16, 256), (4, 512), (2, 1024))  # rows, tokens
REPEATS = 9


def once(backend: str, rows: int, tokens: int, dtype: torch.dtype, device: torch.device, *, learns: bool) -> float:
    """Milliseconds of one forward, and where it ``learns`` backward, pass with 4 heads of width 64."""
    q, k, v = (torch.randn(rows, 4, tokens, 64, dtype=dtype, device=device, requires_grad=learns) for _ in range(3))
    settle(device)
    began = time.perf_counter()
    with torch.set_grad_enabled(learns):
        said = attention(q, k, v, backend=backend).sum()
    if learns:
        said.backward()
    settle(device)
    return 1_000 * (time.perf_counter() - began)


def settle(device: torch.device) -> None:
    """Wait for what a GPU has been asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads; rows x tokens, dtype: sdpa / math ms, sdpa over math")
    for learns, (rows, tokens), dtype in product((True, False), SHAPES, (torch.bfloat16, torch.float32)):
        times: dict[str, list[float]] = {"sdpa": [], "math": []}
        for i in range(REPEATS + 2):
            for backend, taken in times.items():
                measured = once(backend, rows, tokens, dtype, device, learns=learns)
                if i >= 2:  # the first calls build kernels and warm caches
                    taken.append(measured)
        sdpa, math = median(times["sdpa"]), median(times["math"])
        what = "training" if learns else "drawing"
        print(f"{what:8} {rows:4} x {tokens:4}, {dtype}: {sdpa:6.1f} / {math:6.1f} ms, {sdpa / math:.2f}")


if __name__ == "__main__":
    with one_line_errors():
        main()
