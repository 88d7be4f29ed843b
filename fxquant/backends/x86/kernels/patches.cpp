// An image's patches as rows of codes.
#include "abi.h"
#include "share.h"
#include "simd.h"

namespace fxq {
namespace {

void encode(const float* from, uint8_t* to, int64_t count, F32 inverse_step, F32 zero_point) {
    int64_t i = 0;
    const auto codes = [&](F32 x) {
        const F32 value = x * inverse_step + zero_point;
        return round_to_int(min(max(value, splat(0.0f)), splat(255.0f)));
    };
    for (; i + LANES <= count; i += LANES) store_bytes(to + i, codes(load<F32>(from + i)));
    const int rest = (int)(count - i);
    if (rest) store_some_bytes(to + i, codes(load_some<F32>(from + i, rest)), rest);
}

}  // namespace
}  // namespace fxq

// The image is read front to back, line by line: its lines are cut into the patches that they cross,
// whose rows stay in cache meanwhile.
void fxq_patches(const fxq_patches_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    const int64_t across = a->width / a->patch_width;
    const int64_t run = a->patch_width;
    const Share lines = share(a->height / a->patch_height, 1, part, parts);
    for (int64_t line = lines.begin; line < lines.end; ++line) {
        uint8_t* patches = a->output + line * across * a->output_stride;
        for (int64_t c = 0; c < a->channels; ++c) {
            const F32 inverse_step = splat(a->input_is_u8 ? 1.0f : a->inverse_step[c]);
            const F32 zero_point = splat(a->input_is_u8 ? 0.0f : a->zero_point[c]);
            for (int64_t i = 0; i < a->patch_height; ++i) {
                const int64_t from = (c * a->height + line * a->patch_height + i) * a->width;
                uint8_t* to = patches + (c * a->patch_height + i) * run;
                for (int64_t p = 0; p < across; ++p, to += a->output_stride) {
                    if (a->input_is_u8)
                        std::memcpy(to, (const uint8_t*)a->input + from + p * run, (size_t)run);
                    else
                        encode((const float*)a->input + from + p * run, to, run, inverse_step,
                               zero_point);
                }
            }
        }
    }
}
