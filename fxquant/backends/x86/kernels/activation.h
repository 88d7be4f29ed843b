// Activations on vectors.
#pragma once

#include "abi.h"
#include "simd.h"

namespace fxq {

// x * (1/2 + t q(t^2)) with t = x clamped to +-limit: the odd polynomial t q(t^2) is the minimax fit
// of Phi(t) - 1/2, weighted by t, among those that reach 1/2 at the limit exactly. The result
// differs from GELU by less than 8.3e-5 (erf) and 7.2e-5 (tanh), for all x.
inline F32 gelu_like(F32 x, const float (&q)[8], float limit) {
    const F32 t = min(max(x, splat(-limit)), splat(limit));
    const F32 s = t * t;
    F32 sum = splat(q[7]);
#pragma GCC unroll 7
    for (int i = 6; i >= 0; --i) sum = sum * s + splat(q[i]);
    return x * (t * sum + splat(0.5f));
}

inline F32 gelu(F32 x) {
    constexpr float Q[8] = {3.984939158e-01f, -6.557463305e-02f, 9.323741935e-03f,
                            -9.572067608e-04f, 6.777936433e-05f, -3.103568447e-06f,
                            8.190595402e-08f, -9.398342487e-10f};
    return gelu_like(x, Q, 4.15f);
}

inline F32 gelu_tanh(F32 x) {
    constexpr float Q[8] = {3.985293834e-01f, -6.594065973e-02f, 9.559949960e-03f,
                            -1.016928140e-03f, 7.552231304e-05f, -3.651763478e-06f,
                            1.020777394e-07f, -1.241821068e-09f};
    return gelu_like(x, Q, 4.05f);
}

// x / (1 + 2^y) with y = -x log2(e); 2^y from its integer part in the exponent and a polynomial of
// relative error 4e-6 over -1/2..1/2.
inline F32 silu(F32 x) {
    const F32 y = min(max(x * -1.44269504f, splat(-126.0f)), splat(126.0f));
    const I32 whole = round_to_int(y);
    const F32 f = y - to_float(whole);
    F32 power = splat(0.00967603f) * f + splat(0.05591240f);
    power = power * f + splat(0.24022651f);
    power = power * f + splat(0.69312103f);
    power = power * f + splat(1.0f);
    power = floats(bits(power) + (whole << 23));
    return x / (power + 1.0f);
}

template <int ACTIVATION>
inline F32 activate(F32 x) {
    if constexpr (ACTIVATION == FXQ_GELU) return gelu(x);
    if constexpr (ACTIVATION == FXQ_GELU_TANH) return gelu_tanh(x);
    if constexpr (ACTIVATION == FXQ_RELU) return max(x, splat(0.0f));
    if constexpr (ACTIVATION == FXQ_SILU) return silu(x);
    return x;
}

}  // namespace fxq
