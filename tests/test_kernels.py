"""The Triton kernels: on CUDA, or with Triton's interpreter, where that is installed.

In float32 within its rounding.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETER = "3.9.0"  # its interpreter gets along with numpy 2.4
pytest.importorskip(
    "triton",
    minversion=INTERPRETER if DEVICE == "cpu" else None,
    reason=f"no CUDA device is here, nor Triton {INTERPRETER} or later to interpret the kernels",
)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 64, 9, 11, 8),
        (1, 96, 40, 30, 32),
        (3, 2560, 8, 8, 32),
        (2, 1280, 16, 16, 32),
        (1, 2560, 16, 16, 32),
        (1, 320, 64, 64, 32),
        (1, 30, 5, 7, 3),
    ],
)
def test_group_norm(shape: tuple[int, ...], moved: bool, silu: bool) -> None:
    """The input is far from zero, where naive sums would cancel."""
    from gooddrag.kernels.maps import group_norm

    *size, groups = shape
    x = (torch.randn(size, device=DEVICE) * 2 + 30).requires_grad_()
    weight, bias = torch.randn(2, size[1], device=DEVICE)
    offset = torch.randn(size[:2], device=DEVICE) * 5 if moved else None
    same, found = group_norm(x, offset, weight, bias, groups, 1e-5, silu)
    whole = x.double() if offset is None else x.double() + offset.double()[:, :, None, None]
    expected = functional.group_norm(whole, groups, weight.double(), bias.double(), 1e-5)
    expected = functional.silu(expected) if silu else expected
    assert_same_with_gradients(found, expected, [x], 1e-4)
    both, expected = torch.cat((same, found)), torch.cat((x.double(), expected))
    assert_same_with_gradients(both, expected, [x], 1e-4)


def test_add() -> None:
    from gooddrag.kernels.sums import add

    x, r = (torch.randn(2, 24, 5, 3, device=DEVICE).requires_grad_() for _ in range(2))
    bias = torch.randn(24, device=DEVICE)
    assert_same_with_gradients(add(x, r, bias), x + r + bias[:, None, None], [x, r], 1e-6)


def test_geglu() -> None:
    from gooddrag.kernels.tokens import geglu

    x = (torch.randn(3, 77, 2 * 1280, device=DEVICE) * 2).requires_grad_()
    a, gate = x.chunk(2, dim=-1)
    assert_same_with_gradients(geglu(x), a * functional.gelu(gate), [x], 1e-5)


@pytest.mark.parametrize("width", [40, 320, 1280])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("read", ["sum", "norm", "both"])
def test_layer_norm_of_sum(width: int, summed: bool, read: str) -> None:
    from gooddrag.kernels.tokens import layer_norm_of_sum

    x, r = (torch.randn(2, 7, width, device=DEVICE).requires_grad_() for _ in range(2))
    weight, bias = torch.randn(2, width, device=DEVICE)
    found = layer_norm_of_sum(x, r if summed else None, weight, bias, 1e-5)
    total = x + r if summed else x
    expected = (total, functional.layer_norm(total, (width,), weight, bias, 1e-5))
    keep = {"sum": slice(0, 1), "norm": slice(1, 2), "both": slice(0, 2)}[read]
    found, expected = (torch.cat(y[keep]) for y in (found, expected))
    assert_same_with_gradients(found, expected, [x, r] if summed else [x], 1e-5)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            "bfloat16", marks=pytest.mark.skipif(DEVICE == "cpu", reason="numpy has none")
        ),
        "float16",
    ],
)
@pytest.mark.parametrize(("n", "m", "heads", "d"), [(300, 77, 8, 40), (70, 5, 1, 160)])
def test_attention_to_the_text(dtype: str, n: int, m: int, heads: int, d: int) -> None:
    """Against torch's in float64; keys and values are parts of one product, as in the UNet."""
    from gooddrag.kernels import text

    given = {"device": DEVICE, "dtype": getattr(torch, dtype)}
    q, both = torch.randn(2, n, heads * d, **given), torch.randn(2, m, 3 * heads * d, **given)
    k, v = both[..., : heads * d], both[..., 2 * heads * d :]
    q.requires_grad_()
    assert text.fits(q, k, v)
    parts = (x.double().unflatten(-1, (heads, d)).transpose(1, 2) for x in (q, k, v))
    expected = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    found = text.attend_to_text(q, k, v, heads).double()
    assert_same_with_gradients(found, expected, [q], 2e-2 if dtype == "bfloat16" else 3e-3)


def test_which_attention_is_to_a_text() -> None:
    from gooddrag.kernels.text import TOKENS, fits

    q, k = (torch.zeros(1, n, 64, dtype=torch.float16) for n in (300, TOKENS))
    assert fits(q, k, k)
    assert not fits(q, *[torch.zeros(1, TOKENS + 1, 64, dtype=torch.float16)] * 2)
    assert not fits(q, k.clone().requires_grad_(), k)
    assert not fits(q, k, torch.zeros(1, 64, TOKENS, dtype=torch.float16).mT)
    assert not fits(q, k.float(), k.float())
    assert not fits(q.float(), k.float(), k.float())


def assert_same_with_gradients(
    found: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor], tolerance: float
) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)
    towards = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((y * towards).sum(), inputs, retain_graph=True)
        for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)
