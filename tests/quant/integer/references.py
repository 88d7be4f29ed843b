"""The integer kernels once more, in Python's unbounded integers, one element at a time."""

from __future__ import annotations

import math
from fractions import Fraction


def requantize(q: int, m: int, e: int, z: int, low: int, high: int) -> int:
    return min(max(math.floor(Fraction(q * m, 2**e) + Fraction(1, 2)) + z, low), high)


def i_exp(q: int, scale: float, n: int) -> int:
    x0 = math.floor(-0.6931 / scale)
    q = max(q, n * x0)
    z, r = -(q // -x0), 0
    z = (-q) // (-x0)
    r = q - z * x0
    value = r * (r + math.floor(0.96963238 / 0.35815147 / scale))
    value += math.floor(1.0 / 0.35815147 / scale**2)
    return value * 2 ** (n - z)


def shift_exp(q: int, scale: float, n: int) -> int:
    unit = math.ceil(1.0 / scale)
    p = max(q + q // 2 - q // 16, -n * unit)
    z = (-p) // unit
    r = p + z * unit
    return math.floor(Fraction(r, 2) * 2 ** (n - z) + unit * 2 ** (n - z))


def finer(scale: float) -> tuple[int, float]:
    n = min(max(11 + math.ceil(math.log2(scale)), 0), 13)
    return 2**n, scale / 2**n


def i_softmax(row: list[int], scale: float, k: int) -> list[int]:
    factor, scale = finer(scale)
    row = [q * factor for q in row]
    c = math.floor(1.0 / 0.35815147 / scale**2)
    n = min(30, 61 - c.bit_length() - len(row).bit_length())
    e0 = c * 2**n
    cut = max(0, e0.bit_length() - 31)
    ratio = 32767 / (e0 >> cut)
    shift = 31 - math.frexp(ratio)[1]
    m = math.floor(ratio * 2**shift + 0.5)
    wide = [i_exp(q - max(row), scale, n) >> cut for q in row]
    e = [requantize(w, m, shift, 0, 0, 32767) for w in wide]
    return [math.floor(Fraction(x * (2**32 // sum(e)), 2 ** (32 - k))) for x in e]


def shiftmax(row: list[int], scale: float, k: int) -> list[int]:
    factor, scale = finer(scale)
    row = [q * factor for q in row]
    e = [shift_exp(q - max(row), scale, 15) for q in row]
    return [(x * ((2**61 - 1) // sum(e))) // 2 ** (62 - k) for x in e]


def log_int_softmax(row: list[int], scale: float, b: int) -> list[int]:
    factor, scale = finer(scale)
    row = [q * factor for q in row]
    c = math.floor(1.0 / 0.35815147 / scale**2)
    n = min(30, 61 - c.bit_length() - len(row).bit_length())
    e = [max(1, i_exp(q - max(row), scale, n)) for q in row]
    codes = []
    for x in e:
        t = math.floor(Fraction(sum(e), x) + Fraction(1, 2))
        f = t.bit_length() - 1
        f += t - 2**f >= Fraction(2**f, 2)
        codes.append(f if f < 2**b else 255)
    return codes


def i_gelu(q: int, scale: float) -> int:
    s = scale / 1.4142
    n = max(0, math.floor(math.log2(1.0 / (0.2888 * s**2))) - 12)
    beta, c = math.floor(-1.769 / s), math.floor(1.0 / -0.2888 / s**2)
    sign = (q > 0) - (q < 0)
    y = (sign * ((min(abs(q), -beta) + beta) ** 2 + c)) // 2**n
    one = math.floor(1.0 / (-0.2888 * s**2 * 2**n))
    return -(q * (y + one))


def shift_gelu(row: list[int], scale: float, k: int) -> list[int]:
    factor, step = finer(1.702 * scale)
    top = max(*row, 0)
    made = []
    for q in row:
        e = shift_exp((q - top) * factor, step, 23)
        f = (2**61 - 1) // (e + shift_exp(-top * factor, step, 23))
        made.append(q * (e * f // 2 ** (62 - k)))
    return made


def centred(row: list[int]) -> list[int]:
    mean = math.floor(Fraction(sum(row), len(row)) + Fraction(1, 2))
    return [q - mean for q in row]


def i_layer_norm(row: list[int], shift: int) -> list[int]:
    y = centred(row)
    root = max(1, math.isqrt(sum((v // 2**shift) ** 2 for v in y))) * 2**shift
    return [v * (2**31 // root) // 2 for v in y]


def newton(v: int, steps: int) -> int:
    x = 2**16
    for _ in range(steps):
        x = (x + v // max(x, 1)) // 2
    return x


def shift_layer_norm(row: list[int], steps: int) -> list[int]:
    y = centred(row)
    v = sum(q * q for q in y)
    root = max(1, newton(v, steps) if steps else math.isqrt(v))
    return [q * ((2**31 - 1) // root) // 2 for q in y]


def power_layer_norm(
    row: list[int], alpha: list[int], z: int, gain: list[int], offset: list[int]
) -> list[int]:
    x = [(q - z) * 2**a for q, a in zip(row, alpha, strict=True)]
    c, total = len(x), sum(x)
    root = max(1, math.isqrt(c * sum(v * v for v in x) - total**2))
    made = []
    for v, g, o in zip(x, gain, offset, strict=True):
        a = abs(g) * c * 2**20 // root  # A with 36 fractional bits
        n = min(max(7 - (a.bit_length() - 1 - 36), 0), 31)
        m = min(math.floor(Fraction(a * 2**n, 2**36)), 255)
        shift = o - g * total // root
        b = math.floor(Fraction(shift * 2**n, 2**16) + Fraction(1, 2))
        sign = (g > 0) - (g < 0)
        made.append(math.floor(Fraction(sign * m * v + b, 2**n) + (Fraction(1, 2) if n else 0)))
    return made
