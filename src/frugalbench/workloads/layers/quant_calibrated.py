"""4-bit codes that are chosen for what a layer sees, in the format of ``rtn-int4``: GPTQ, and scaling as in AWQ.

Both make the layer's mean squared error on calibration inputs small, tr(D H Dᵀ) for D = W - W', where H is the mean
of x xᵀ. GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds one input's weights after the other and lets those to come
make up for the error: with H⁻¹ = UᵀU, the error of column j over U[j, j] is taken from the columns behind it, times
U[j]. AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.2) rounds W diag(s) to nearest and divides inputs by s, for
s = mean(abs(x))^a with the best a of a grid. What makes room for s in the layer before it is left out: s is stored in
float16 and divided by in each call, 2 bytes per input more. Shape suffixes: N outputs, K inputs, G groups.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from frugalbench.workloads.layers.quant_rtn import RoundToNearest, codes_of, paired, rtn_groups, scales_of
from frugalbench.workloads.layers.quant_stored import Stored, grouped, require_finite

BITS = 4
DAMPING = 0.01
"""Share of its mean that is added to the diagonal of H, as the paper of GPTQ has it."""
GRID = 20
"""Exponents from 0, which is rounding to nearest, in steps of a twentieth, as the paper of AWQ has it."""
_SAME = 1e-6


@dataclass(frozen=True)
class Moments:
    """What a layer saw of the calibration text."""

    second: np.ndarray
    """Mean of x xᵀ (K, K), float64."""
    magnitude: np.ndarray
    """Mean of abs(x) (K), float64."""


@dataclass(frozen=True)
class Codes:
    """One matrix as it is stored, and how far that is off."""

    codes: np.ndarray
    """uint8 (N, G, group / 2)."""
    scales: np.ndarray
    """float16 (N, G, 1)."""
    divisors: np.ndarray
    """float16 (K): what inputs are divided by; empty where they are not."""
    deviation: np.ndarray
    """float32 (N, G): how far the stored weights of a group lie from the given ones at most. Not stored with them."""
    error: float
    """tr(D H Dᵀ)."""


def gptq(weights_NK: np.ndarray, moments: Moments, group: int) -> Codes:
    """Column after column. Raises ``RuntimeError`` for weights that are not finite, and where what is stored does not
    have the loss that the recursion counted: Σ over columns of (error / U[j, j])² is (w - w') H (w - w')ᵀ."""
    weights = require_finite(weights_NK).astype(np.float64)
    damped_KK = _damped(moments.second)
    codes, scales, counted_N = _fed_back(weights, _upper(damped_KK), group)
    made = _made(weights, codes, scales, np.empty(0, np.float16), moments)
    off_NK = weights - _values(made, weights.shape[1])
    loss_N = ((off_NK @ damped_KK) * off_NK).sum(axis=1)
    if not np.allclose(loss_N, counted_N, rtol=_SAME, atol=_SAME * float(counted_N.max(initial=0.0))):
        raise RuntimeError("GPTQ stored other weights than it had reckoned with")
    return made


def _damped(second_KK: np.ndarray) -> np.ndarray:
    """Of full rank. A layer that saw nothing but zeros gets the unit matrix: rounding to nearest."""
    mean = float(np.trace(second_KK)) / len(second_KK)
    return second_KK + DAMPING * mean * np.eye(len(second_KK)) if mean > 0 else np.eye(len(second_KK))


def _upper(damped_KK: np.ndarray) -> np.ndarray:
    """U with UᵀU = H⁻¹."""
    from scipy.linalg import cholesky, lapack

    inverse_KK, failed = lapack.dpotri(cholesky(damped_KK, lower=False), lower=False)
    if failed:
        raise RuntimeError("the second moments of a layer's calibration inputs cannot be inverted")
    return np.asarray(cholesky(np.triu(inverse_KK) + np.triu(inverse_KK, 1).T, lower=False))


def _fed_back(weights: np.ndarray, upper_KK: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (N, G, group), scales (N, G, 1) and the loss of each row; a group's scale fits it as it is when its turn
    comes."""
    left_NK, k = weights.copy(), weights.shape[1]
    codes_of_group, scales, loss_N = [], [], np.zeros(len(weights))
    for start in range(0, k, group):
        stop = min(start + group, k)
        scale = scales_of(left_NK[:, None, start:stop], BITS)[:, 0]
        codes = np.zeros((len(weights), group), np.int8)
        errors = np.empty((len(weights), stop - start))
        for j in range(start, stop):
            codes[:, j - start] = codes_of(left_NK[:, j : j + 1], scale, BITS)[:, 0]
            off = left_NK[:, j] - codes[:, j - start] * scale[:, 0].astype(np.float64)
            errors[:, j - start] = off / upper_KK[j, j]
            left_NK[:, j:stop] -= np.outer(errors[:, j - start], upper_KK[j, j:stop])
        left_NK[:, stop:] -= errors @ upper_KK[start:stop, stop:]
        codes_of_group.append(codes)
        scales.append(scale)
        loss_N += (errors**2).sum(axis=1)
    return np.stack(codes_of_group, axis=1), np.stack(scales, axis=1), loss_N


def awq(weights_NK: np.ndarray, moments: Moments, group: int) -> Codes:
    """The best of :data:`GRID` exponents by the error on calibration inputs; 0 is among them. Raises ``RuntimeError``
    for weights that are not finite."""
    weights = require_finite(weights_NK).astype(np.float64)
    tried = (_scaled(weights, divisors_of(moments.magnitude, step / GRID), moments, group) for step in range(GRID))
    return min(tried, key=lambda made: made.error)


def rtn(weights_NK: np.ndarray, moments: Moments, group: int) -> Codes:
    """Codes rounded to nearest, to hold the others against."""
    return _scaled(require_finite(weights_NK).astype(np.float64), np.empty(0, np.float16), moments, group)


def divisors_of(magnitude_K: np.ndarray, exponent: float) -> np.ndarray:
    """float16 (K), geometrically centred on 1; channels that saw next to nothing count as a thousandth of the mean."""
    least = max(float(magnitude_K.mean()) * 1e-3, 1e-30)
    powers_K = np.maximum(magnitude_K, least) ** exponent
    return np.asarray((powers_K / np.sqrt(powers_K.max() * powers_K.min())).astype(np.float16))


def _scaled(weights: np.ndarray, divisors_K: np.ndarray, moments: Moments, group: int) -> Codes:
    wider_NK = weights * divisors_K.astype(np.float64) if divisors_K.size else weights
    blocks = grouped(wider_NK.astype(np.float32), group)
    scales = scales_of(blocks, BITS)
    return _made(weights, codes_of(blocks, scales, BITS), scales, divisors_K, moments)


def _made(
    weights: np.ndarray, codes: np.ndarray, scales: np.ndarray, divisors_K: np.ndarray, moments: Moments
) -> Codes:
    """Judged by what the stored bytes stand for; float32 is enough to tell errors apart."""
    bare = Codes(paired(codes), scales, divisors_K, np.empty(0), 0.0)
    off_NK = weights - _values(bare, weights.shape[1])
    deviation = np.abs(grouped(off_NK, codes.shape[-1])).max(axis=-1).astype(np.float32)
    narrow_NK = off_NK.astype(np.float32)
    error = float(np.vdot(narrow_NK @ moments.second.astype(np.float32), narrow_NK))
    return replace(bare, deviation=deviation, error=error)


def _values(made: Codes, k: int) -> np.ndarray:
    """The weights that the stored bytes stand for, float64 (N, K)."""
    values = rtn_groups(made.codes, made.scales, BITS).rows(0, len(made.codes))[0]
    values_NK = values.reshape(len(values), -1)[:, :k]
    return values_NK / made.divisors.astype(np.float64) if made.divisors.size else values_NK


class Calibrated(RoundToNearest):
    """One matrix of codes that were chosen before, multiplied in float32 as ``rtn-int4`` is."""

    def __init__(self, made: Codes, k: int, device: str) -> None:
        super().__init__(lambda _copy: np.empty((0, 0)), 0, BITS, 2 * made.codes.shape[-1], device)
        self._held = [self._placed(made.codes, made.scales, k)]
        self._made = made
        self._divisors = self._torch.from_numpy(made.divisors).to(device)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call: divide inputs where that is asked for, unpack, scale, multiply."""
        return super().run(copy, x / self._divisors.float() if len(self._divisors) else x)

    def stored(self, copy: int) -> Stored:
        """Codes, scales and divisors; a weight lies no farther off than it did when codes were chosen."""
        base = super().stored(copy)
        divisors = self._divisors.cpu().numpy()
        wide = grouped(np.pad(divisors, (0, -len(divisors) % self._group), constant_values=1)[None], self._group)

        def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            values = base.rows(start, stop)[0]
            limit = self._made.deviation[start:stop].astype(np.float64) * (1 + _SAME)
            return values / wide.astype(np.float64) if divisors.size else values, limit

        return Stored(rows, (*base.arrays, *((divisors,) if divisors.size else ())))
