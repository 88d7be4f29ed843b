// factor * 2^x for x <= 0, within 7.5e-5 relative: enough for codes of 8 bits (an error of 0.02
// codes) and for bf16.
#pragma once

#include "simd.h"

namespace fxq {

class Exponential {
public:
    explicit Exponential(float factor)
        : c0(splat(factor * 0.999925226f)),
          c1(splat(factor * 0.695833413f)),
          c2(splat(factor * 0.226067225f)),
          c3(splat(factor * 0.0780245889f)) {}

    // Inputs below -126 (masks, -inf) give factor * 2^-126: no denormals, which are slow.
    F32 operator()(F32 x) const {
#if FXQ_LANES == 16
        x = (F32)_mm512_max_ps((__m512)x, _mm512_set1_ps(-126.0f));
        // vscalef multiplies by 2^floor(x), so the polynomial takes the rest above the floor.
        const F32 rest = (F32)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
        return (F32)_mm512_scalef_ps((__m512)polynomial(rest), (__m512)x);
#else
        x = max(x, splat(-126.0f));
        const I32 whole = round_to_int(x - 0.5f);
        const F32 rest = x - to_float(whole);
        return floats(bits(polynomial(rest)) + (whole << 23));
#endif
    }

private:
    // Minimax of the relative error over 0..1.
    F32 polynomial(F32 x) const { return ((c3 * x + c2) * x + c1) * x + c0; }

    F32 c0, c1, c2, c3;
};

}  // namespace fxq
