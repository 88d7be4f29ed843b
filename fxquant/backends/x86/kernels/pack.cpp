// Weights in the order in which a product reads them.
#include <algorithm>

#include "abi.h"
#include "simd.h"

int64_t fxq_panel(void) { return fxq::PANEL; }

int64_t fxq_packed_bytes(int64_t columns, int64_t inner) {
    const int64_t panels = (columns + fxq::PANEL - 1) / fxq::PANEL;
    return panels * fxq::PANEL * ((inner + 3) / 4 * 4);
}

// [panels][ceil(inner / 4)][PANEL][4], zeros beyond the last column and the last inner index.
void fxq_pack_weight(const int8_t* weight, int64_t columns, int64_t inner, int8_t* packed) {
    for (int64_t first = 0; first < columns; first += fxq::PANEL)
        for (int64_t quad = 0; quad < inner; quad += 4)
            for (int64_t column = first; column < first + fxq::PANEL; ++column)
                for (int64_t k = quad; k < quad + 4; ++k)
                    *packed++ = column < columns && k < inner ? weight[column * inner + k] : 0;
}
