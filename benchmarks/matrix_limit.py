"""How much arithmetic a training step needs, and how fast this machine multiplies the model's own matrices.

Invariant: only real tokens count, never padding, and nothing that is computed twice; the limit is measured in the
precision that the training used, with all threads.

    work = Arithmetic.of(model)
    flops = work.of_step(tokens=2_000, targets=16, squared_lengths=400_000)
    limit = best_product_rate(model, rows=2_300, precision="bf16", device=device)     # FLOP/s by shape
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10": 125e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "T4": 65e12,
    "V100": 125e12,
}
"""Dense bf16 (T4, V100: fp16) FLOP/s that the vendor states, by a word of the card's name; the first that fits
holds.
"""
MEASURED_S = 0.25
"""For each shape."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What a model multiplies.

    A step's FLOPs are 6 N for each real token, 6 H for each target and 12 L W T^2 for each sequence of T tokens: two
    products of [T, W] and [T, T] matrices a layer, 2 FLOPs a multiply-add, and the backward pass counts twice the
    forward one. A causal mask is not deducted. Source: Chowdhery et al., PaLM (2022), appendix B; Kaplan et al.,
    Scaling Laws (2020), section 2.1.

    The output layer is counted where a loss is taken and nowhere else: H is charged to targets (the completion's tokens
    of a decoder, the one label of a classified text), although some trainers multiply it for every position. So is what
    of a last layer only the first token of a classified text needs (all but keys and values), with its attention, where
    mltrack computes it for that token alone."""

    body: int
    """N: parameters of the layers, without embeddings and output layer."""
    head: int
    """H: parameters of the output layer, tied ones included."""
    layers: int
    """L"""
    width: int
    """W: heads times their size."""
    last: int = 0
    """Those of N that are multiplied for one token of a sequence."""

    @classmethod
    def of(cls, model: Any) -> Arithmetic:
        """Read from a transformers model."""
        from torch import nn

        from mltrack.training.speed.first_token import reads_first_token

        inner, config = model.base_model, model.config
        embedded = {
            id(weight) for part in inner.modules() if isinstance(part, nn.Embedding) for weight in part.parameters()
        }
        outside = [part for _, part in model.named_children() if part is not inner]
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        last = inner.encoder.layer[-1] if reads_first_token(model) else None
        own = () if last is None else (last.attention.self.key, last.attention.self.value)
        every_token = sum(weight.numel() for part in own for weight in part.parameters())
        return cls(
            body=sum(weight.numel() for weight in inner.parameters() if id(weight) not in embedded),
            head=sum(weight.numel() for part in outside for weight in part.parameters()),
            layers=config.num_hidden_layers,
            width=config.num_attention_heads * head_dim,
            last=0 if last is None else sum(weight.numel() for weight in last.parameters()) - every_token,
        )

    def of_step(self, *, tokens: int, targets: int, squared_lengths: int) -> float:
        """FLOPs of a forward and a backward pass; `squared_lengths` is the sum of T^2 over the sequences."""
        whole_layers = self.layers - bool(self.last)
        return (
            6.0 * (self.body - self.last) * tokens
            + 6.0 * (self.head + self.last) * targets
            + 12.0 * whole_layers * self.width * squared_lengths
        )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def best_product_rate(model: Any, *, rows: int, precision: str, device: Any) -> dict[str, float]:
    """FLOP/s of the products of the model's linear layers, forward and backward, each the best of its repetitions, by
    shape.

    Args:
        rows: of the activations: padded tokens of a usual batch.
        precision: as the training ran: bf16, fp16 or off.
    """
    import torch
    from torch import nn

    from mltrack.hardware import cpu_multiplies_bf16, usable_cores

    assert precision == "off" or device.type != "cpu" or cpu_multiplies_bf16(), (
        f"{precision} products are emulated on this CPU"
    )
    if device.type == "cpu":
        torch.set_num_threads(usable_cores())
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[precision]
    shapes = sorted({tuple(part.weight.shape) for part in model.base_model.modules() if isinstance(part, nn.Linear)})
    rates = {}
    with torch.no_grad():
        for wide, narrow in shapes:
            x = torch.randn(rows, narrow, dtype=dtype, device=device)
            y = torch.randn(rows, wide, dtype=dtype, device=device)
            w = torch.randn(wide, narrow, dtype=dtype, device=device)
            for name, left, right in (
                (f"[{rows},{narrow}]x[{narrow},{wide}]", x, w.T),
                (f"[{rows},{wide}]x[{wide},{narrow}]", y, w),
                (f"[{wide},{rows}]x[{rows},{narrow}]", y.T, x),
            ):
                rates[name] = 2.0 * rows * wide * narrow / _best_seconds(left, right)
    return rates


def _best_seconds(left: Any, right: Any) -> float:
    """Of one product; on a GPU of the mean of 20, whose start costs nothing then."""
    import torch

    repeated = 20 if left.is_cuda else 1
    best, ends = float("inf"), time.perf_counter() + MEASURED_S
    while time.perf_counter() < ends:
        if left.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeated):
            torch.mm(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - started) / repeated)
    return best


def stated_peak() -> float | None:
    """FLOP/s that the vendor states for the GPU of this process; None where it is none that is known here."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None)
