// s8 weights over tokens times u8 activations in QUADS layout.
#include <cstdlib>
#include <memory>

#include "epilogue.h"

namespace fxq {
namespace {

class Mix {
public:
    explicit Mix(const fxq_mix_arguments& a)
        : a_(a),
          quads_((a.tokens + 3) / 4),
          most_(a.epilogue.store == FXQ_U8_QUADS ? QUAD_ROWS : BLOCK_ROWS),
          whole_(finish_for<true, true>(a.epilogue)),
          partial_(finish_for<true, false>(a.epilogue)) {}

    void run(Share rows, Share panels) const {
        if (rows.begin >= rows.end) return;
        // A panel of the input is copied once: in place its lines are 4 * columns bytes apart, which
        // for many widths puts them all into the same few sets of the cache.
        const std::unique_ptr<uint8_t, decltype(&std::free)> copy(
            (uint8_t*)std::aligned_alloc(64, (size_t)(quads_ * 4 * PANEL + 64)), &std::free);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            take(panel, copy.get());
            multiply_panel(rows, panel, copy.get());
        }
    }

private:
    void take(int64_t panel, uint8_t* to) const {
        const int64_t columns = std::min<int64_t>(PANEL, a_.columns - panel * PANEL);
        const uint8_t* from = a_.input + panel * 4 * PANEL;
        for (int64_t quad = 0; quad < quads_; ++quad) {
            std::memcpy(to, from, (size_t)(4 * columns));
            std::memset(to + 4 * columns, 0, (size_t)(4 * (PANEL - columns)));
            from += a_.input_stride;
            to += 4 * PANEL;
        }
    }

    void multiply_panel(Share rows, int64_t panel, const uint8_t* input) const {
        const int64_t columns = a_.columns - panel * PANEL;
        const int width = (int)std::min<int64_t>(VECTORS, (columns + LANES - 1) / LANES);
        const Finish finish = columns >= PANEL ? whole_ : partial_;
        Sums sums;
        for (int64_t row = rows.begin; row < rows.end;) {
            const int count = next_rows(rows.end - row, most_);
            const Place at{row, panel * PANEL, count, columns};
            const Multiply multiply = multiply_for<Broadcast::WEIGHTS>(count, width);
            multiply(a_.weight + row * 4 * quads_, 4 * quads_, input, quads_, a_.start + row, sums);
            finish(a_.epilogue, sums, at);
            row += count;
        }
    }

    const fxq_mix_arguments& a_;
    int64_t quads_;
    int most_;
    Finish whole_, partial_;
};

}  // namespace
}  // namespace fxq

void fxq_mix(const fxq_mix_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    // By rows every part reads all of the input, so by columns where those are shared as evenly.
    const Work work = work_of(a->outputs, a->columns, a->epilogue.store, part, parts);
    Mix(*a).run(work.rows, work.panels);
}
