"""Argument checks of the operations: every error names the argument, the rule and the value."""

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from thinkers.errors import UsageError

PairValues = bool | float | Tensor | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None
"""One value per pair of query and key: a constant, a tensor broadcastable to (b, h, t, s), or an
elementwise function of the int64 indices (b, h, q, k). None: no value."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, x: Tensor, axes: str, like: Tensor | None = None) -> None:
    """Raise ValueError unless `x` is floating, has `axes`, and the dtype and device of `like`."""
    number = len(axes.split())
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} must be a tensor ({axes}), got {type(x).__name__}")
    if x.ndim != number:
        raise UsageError(f"{name} must have the {number} axes ({axes}), got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise UsageError(
            f"{name} must be float64, float32, bfloat16 or float16, got {_dtype(x.dtype)}"
        )
    if x.layout != torch.strided:
        raise UsageError(f"{name} must be a dense tensor, got layout {_dtype(x.layout)}")
    if like is not None and x.dtype != like.dtype:
        raise UsageError(f"{name} must have q's dtype {_dtype(like.dtype)}, got {_dtype(x.dtype)}")
    if like is not None and x.device != like.device:
        raise UsageError(f"{name} must be on q's device {like.device}, got {x.device}")


def check_shape(name: str, x: Tensor, axes: str, wanted: dict[str, int]) -> None:
    """Raise ValueError unless `x`, with `axes`, has the sizes in `wanted`."""
    for axis, size in zip(axes.split(), x.shape, strict=True):
        if axis in wanted and size != wanted[axis]:
            raise UsageError(
                f"{name} must have {axis} = {wanted[axis]} in ({axes}), got shape {tuple(x.shape)}"
            )


def check_heads(name: str, q: Tensor, k: Tensor) -> None:
    """Raise ValueError unless the number of key heads divides that of query heads."""
    h, g = q.shape[1], k.shape[1]
    if g == 0 or h % g:
        raise UsageError(f"{name} must have a number of heads that divides q's {h}, got {g}")
    if q.shape[3] == 0:
        raise UsageError(f"q must have a head dim d of at least 1, got shape {tuple(q.shape)}")


def check_scale(scale: float | None) -> None:
    """Raise ValueError unless `scale` is None or a finite number."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise UsageError(f"scale must be None or a number, got {scale!r}")
    # Not math.isfinite: an int above the largest float would raise OverflowError there.
    if not abs(scale) <= sys.float_info.max:
        raise UsageError(f"scale must be finite, got {scale!r}")


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, got {value!r}")


def check_backend(backend: str, names: tuple[str, ...]) -> None:
    """Raise ValueError unless `backend` is one of `names`."""
    if backend not in names:
        raise UsageError(f"backend must be one of {', '.join(names)}, got {backend!r}")


def check_pair_values(name: str, x: PairValues, q: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `x` is None, a number, or a tensor or function that fits `shape`."""
    if isinstance(x, float) and not math.isfinite(x):
        raise UsageError(f"{name} must be finite, got {x!r}")
    if x is None or isinstance(x, bool | float):
        return
    if callable(x) and not isinstance(x, Tensor):
        # One evaluation at index 0 finds a wrong type or dtype before anything is computed.
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=q.device)
        check_pair_tensor(f"the result of {name}", x(zero, zero, zero, zero), q, (1, 1, 1, 1))
        return
    if not isinstance(x, Tensor):
        raise UsageError(
            f"{name} must be None, a bool, a float, a tensor of either or a function of "
            f"(b, h, q, k), got {x!r}"
        )
    check_pair_tensor(name, x, q, shape)


def check_pair_tensor(name: str, x: Tensor, q: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `x` is bool or floating, broadcasts to `shape`, needs no gradient."""
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype != torch.bool and x.dtype not in DTYPES:
        raise UsageError(f"{name} must be bool or floating, got {_dtype(x.dtype)}")
    if x.device != q.device:
        raise UsageError(f"{name} must be on q's device {q.device}, got {x.device}")
    if x.requires_grad:
        raise UsageError(f"{name} must not require a gradient, got one that does; detach it")
    fits = x.ndim <= 4 and all(
        size in (1, full) for size, full in zip(x.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise UsageError(
            f"{name} must broadcast to (b, h, t, s) = {tuple(shape)}, got shape {tuple(x.shape)}"
        )


def check_stop_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    mask: Tensor | None,
    stops: dict[str, PairValues],
    scale: float | None,
) -> None:
    """Raise ValueError unless `stop_grad_attention` can take these arguments."""
    check_tensor("q", q, "b h t d")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, "b g s d", like=q)
        check_shape(name, x, "b g s d", {"b": q.shape[0], "d": q.shape[3]})
        check_heads(name, q, x)
    check_shape("v", v, "b g s d", {"g": k.shape[1], "s": k.shape[2]})
    check_flag("causal", causal)
    check_scale(scale)
    shape = (*q.shape[:3], k.shape[2])
    if mask is not None:
        check_pair_tensor("mask", mask, q, shape)
    for name, stop in stops.items():
        check_pair_values(name, stop, q, shape)


def check_thought(
    q: Tensor,
    base_k: Tensor,
    base_v: Tensor,
    chain_k: Tensor,
    chain_v: Tensor,
    causal: bool,
    key_padding: Tensor | None,
    scale: float | None,
) -> None:
    """Raise ValueError unless `thought_attention` can take these arguments."""
    check_tensor("q", q, "b h t d")
    b, _, t, d = q.shape
    for name, x in (("base_k", base_k), ("base_v", base_v)):
        check_tensor(name, x, "b g s d", like=q)
        check_shape(name, x, "b g s d", {"b": b, "d": d})
        check_heads(name, q, x)
    g, s = base_k.shape[1:3]
    check_shape("base_v", base_v, "b g s d", {"g": g, "s": s})
    if t > s:
        raise UsageError(f"q must have at most as many positions as base_k, got t = {t}, s = {s}")
    for name, x in (("chain_k", chain_k), ("chain_v", chain_v)):
        check_tensor(name, x, "b g t n d", like=q)
        check_shape(name, x, "b g t n d", {"b": b, "g": g, "t": t, "d": d})
    check_shape("chain_v", chain_v, "b g t n d", {"n": chain_k.shape[3]})
    check_flag("causal", causal)
    check_scale(scale)
    if key_padding is None:
        return
    if not isinstance(key_padding, Tensor) or key_padding.dtype != torch.bool:
        raise UsageError(f"key_padding must be a bool tensor (b, s), got {_type(key_padding)}")
    if key_padding.shape != (b, s):
        raise UsageError(
            f"key_padding must have shape (b, s) = {(b, s)}, got {tuple(key_padding.shape)}"
        )
    if key_padding.device != q.device:
        raise UsageError(f"key_padding must be on q's device {q.device}, got {key_padding.device}")


def _dtype(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def _type(x: object) -> str:
    return _dtype(x.dtype) if isinstance(x, Tensor) else type(x).__name__
