// A kernel's share of a loop over `total` things that come in whole units.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fxq {

struct Share {
    int64_t begin, end;
};

// The same part gets the same rows in every kernel, up to a unit, so rows stay in one core's cache.
inline Share share(int64_t total, int64_t unit, int32_t part, int32_t parts) {
    const int64_t units = (total + unit - 1) / unit;
    return {std::min(total, units * part / parts * unit),
            std::min(total, units * (part + 1) / parts * unit)};
}

}  // namespace fxq
