// u8 activations times packed s8 weights.
#include "epilogue.h"

namespace fxq {
namespace {

// Bytes of activations that stay in the second-level cache while all panels pass.
constexpr int64_t RESIDENT = 512 * 1024;
constexpr int32_t ZEROS[PANEL] = {};

class Linear {
public:
    explicit Linear(const fxq_linear_arguments& a)
        : a_(a),
          quads_((a.inner + 3) / 4),
          most_(a.epilogue.store == FXQ_U8_QUADS ? QUAD_ROWS : BLOCK_ROWS),
          whole_(finish_for<false, true>(a.epilogue)),
          partial_(finish_for<false, false>(a.epilogue)) {}

    void run(Share rows, Share panels) const {
        const int64_t fitting = std::max<int64_t>(1, RESIDENT / (4 * quads_)) / 12 * 12 + 12;
        for (int64_t row = rows.begin; row < rows.end; row += fitting)
            for (int64_t panel = panels.begin; panel < panels.end; ++panel)
                strip({row, std::min(rows.end, row + fitting)}, panel);
    }

private:
    // A panel of weights passes a strip of rows, block by block.
    void strip(Share rows, int64_t panel) const {
        const int8_t* weight = a_.weight + panel * quads_ * 4 * PANEL;
        const int64_t columns = a_.columns - panel * PANEL;
        const int width = (int)std::min<int64_t>(VECTORS, (columns + LANES - 1) / LANES);
        const Finish finish = columns >= PANEL ? whole_ : partial_;
        const int32_t* start = a_.start + panel * PANEL;
        Sums sums;
        for (int64_t row = rows.begin; row < rows.end;) {
            const int count = next_rows(rows.end - row, most_);
            Place at{row, panel * PANEL, count, columns};
            if (a_.row_scale) {
                at.row_scale = a_.row_scale + row;
                at.row_zero_point = a_.row_zero_point + row;
                at.start = start;
            }
            const Multiply multiply = multiply_for<Broadcast::ACTIVATIONS>(count, width);
            multiply(a_.input + row * a_.input_stride, a_.input_stride, weight, quads_,
                     a_.row_scale ? ZEROS : start, sums);
            finish(a_.epilogue, sums, at);
            row += count;
        }
    }

    const fxq_linear_arguments& a_;
    int64_t quads_;
    int most_;
    Finish whole_, partial_;
};

}  // namespace
}  // namespace fxq

void fxq_linear(const fxq_linear_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    const Work work = work_of(a->rows, a->columns, a->epilogue.store, part, parts);
    Linear(*a).run(work.rows, work.panels);
}
