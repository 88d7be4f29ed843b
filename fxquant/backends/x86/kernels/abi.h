// The kernels' plain C interface. Every argument block describes the work on one image (or, for
// rows = images, on a whole batch); pointers are resolved by the executor. A kernel is called as
// fxq_<name>(&arguments, part, parts): it does its own share `part` of `parts` equal ones, and the
// shares of one call never write the same byte. All sizes are in elements unless they say bytes.
//
// Buffers have at least 64 readable bytes after their last element.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// Activations between the linear and its store.
enum { FXQ_NONE = 0, FXQ_GELU = 1, FXQ_GELU_TANH = 2, FXQ_RELU = 3, FXQ_SILU = 4 };

// How results are stored. ROWS: row-major. QUADS: four consecutive rows interleaved byte by byte,
// [rows / 4][columns][4], the layout in which a product takes its right-hand side; rows beyond the
// last, up to a multiple of four, are written too (any value).
enum { FXQ_F32_ROWS = 0, FXQ_U8_ROWS = 1, FXQ_U8_QUADS = 2 };

// value = act(integer * scale + bias)           (scale and bias: per column of a linear, per row of
//                                                a mix)
// value = value * column_scale[column]          where given
// value = value * multiplicand[row, column]     where given
// value = value + residual[row, column]         where given
// F32: stored as it is.  U8: clamp(round(value * inverse_step + zero_point), 0, 255), rounding to
// even. The store, the multiplicand and the residual use row `row_map[row]` where a map is given.
struct fxq_epilogue {
    const float* scale;
    const float* bias;
    const float* column_scale;    // [columns] or null
    const float* multiplicand;    // or null
    int64_t multiplicand_stride;  // between rows
    const float* residual;        // or null; may be the output itself
    int64_t residual_stride;
    const int32_t* row_map;       // [rows] or null
    void* output;
    int64_t output_stride;        // between rows; for QUADS between groups of four rows
    float inverse_step;
    float zero_point;
    int32_t activation;
    int32_t store;
};

// integer[r, n] = start[n] + sum_k u8 input[r, k] * s8 weight[n, k]
// With row_scale (ranges per token): integer becomes float (integer + row_zero_point[r] * start[n])
// * row_scale[r], where start[n] = -sum_k weight[n, k] and the accumulator starts at zero.
struct fxq_linear_arguments {
    const uint8_t* input;
    int64_t input_stride;         // between rows, in bytes
    int64_t rows, inner, columns;
    const int8_t* weight;         // packed by fxq_pack_weight
    const int32_t* start;         // [columns], padded to whole panels
    const float* row_scale;       // [rows] or null
    const float* row_zero_point;  // [rows], with row_scale
    struct fxq_epilogue epilogue; // scale, bias [columns] padded to whole panels
};

// integer[o, c] = start[o] + sum_t s8 weight[o, t] * u8 input[t, c]: a linear over tokens, whose
// input is in QUADS layout [ceil(tokens / 4)][columns][4] and whose weight is [outputs][ceil4(tokens)]
// with zeros beyond the last token.
struct fxq_mix_arguments {
    const uint8_t* input;
    int64_t tokens, outputs, columns;
    int64_t input_stride;         // bytes between groups of four tokens: 4 * columns, or more
    const int8_t* weight;
    const int32_t* start;         // [outputs]
    struct fxq_epilogue epilogue; // scale, bias [outputs]; rows are outputs
};

enum { FXQ_AFFINE = 0, FXQ_LAYER_NORM = 1 };

// y = (x - mean) / sqrt(var + eps) * weight + bias   or   y = x * weight + bias, row by row, then
// stored. Each row is `pieces` runs of columns / pieces elements; run p of row r starts at
// piece_map[r * pieces + p] * piece_stride. Without a map the runs are consecutive.
struct fxq_norm_arguments {
    const float* input;
    int64_t rows, columns, pieces, piece_stride;
    const int32_t* piece_map;     // [rows * pieces] or null
    const float* weight;          // [columns] or null
    const float* bias;            // [columns] or null
    float epsilon;
    int32_t kind;
    void* output;
    int64_t output_stride;        // as in the epilogue
    float inverse_step;
    float zero_point;
    int32_t store;
    // With row_scale the step and zero point are the row's own: step = max((largest - smallest) /
    // 255, tiny) over the row and zero, zero_point = round(-smallest / step) clamped to 0..255.
    float* row_scale;             // [rows] or null, written
    float* row_zero_point;        // [rows], written
};

// Attention over int8 codes, for `groups` independent groups (windows; 1 without windows) of
// `tokens` tokens and `heads` heads of `width` channels:
//   s[i, j] = (sum_d (q[i, d] - q_zero_point[h]) * (k[j, d] - 128)) * score_scale[h] + bias[g, h, i, j]
//   e[i, j] = 2^(s[i, j] - max_j s[i, j])             (the factor log2(e) is within scale and bias)
//   p[i, j] = round(e[i, j] * 255)
//   o[i, d] = (sum_j p[i, j] * (v[j, d] - 128)) / (sum_j p[i, j]) * output_scale[h, d] + output_bias[h, d]
// stored as u8 clamp(round(o)), or f32. q, k, v are u8 with rows of `input_stride` bytes; the codes
// of group g, token i, head h, channel d are at (g * tokens + i) * input_stride + h * width + d.
struct fxq_attention_arguments {
    const uint8_t *query, *key, *value;
    int64_t input_stride;
    int64_t groups, heads, tokens, width;
    const float* score_scale;         // [heads]
    const int32_t* query_zero_point;  // [heads]
    const float* score_bias;          // or null
    int64_t bias_group_stride, bias_head_stride, bias_row_stride;  // in elements; 0: shared
    const float* output_scale;        // [heads * width], value step / output step
    const float* output_bias;         // [heads * width], the output's zero point for u8
    void* output;
    int64_t output_stride;            // between rows, in elements
    int32_t store;                    // FXQ_U8_ROWS or FXQ_F32_ROWS
    void* scratch;                    // fxq_attention_scratch(&arguments) bytes, this part's own
};

// The same in float: q, k, v are f32 (products in bf16 where the CPU has them, else f32);
// score_scale multiplies q . k, the rest as above, without codes. e is normalized before rounding.
struct fxq_float_attention_arguments {
    const float *query, *key, *value;
    int64_t input_stride;
    int64_t groups, heads, tokens, width;
    float score_scale;
    const float* score_bias;
    int64_t bias_group_stride, bias_head_stride, bias_row_stride;
    const float* output_scale;
    const float* output_bias;
    void* output;
    int64_t output_stride;
    int32_t store;
    void* scratch;
};

// codes[p, (c, i, j)] of patch p = (row, column) of an image [channels][height][width]:
// clamp(round(x * inverse_step[c] + zero_point[c])), or the pixels themselves where input is u8.
struct fxq_patches_arguments {
    const void* input;
    int32_t input_is_u8;
    int64_t channels, height, width, patch_height, patch_width;
    const float* inverse_step;        // [channels], for f32 input
    const float* zero_point;          // [channels]
    uint8_t* output;
    int64_t output_stride;            // between patches
};

// Piece p of the output is piece map[p] of the input, pieces of piece_bytes bytes.
struct fxq_gather_arguments {
    const void* input;
    const int32_t* map;           // [pieces]
    int64_t pieces, piece_bytes;
    void* output;
};

// output[c] = mean over rows of input[r, c]
struct fxq_mean_arguments {
    const float* input;
    int64_t input_stride;         // between rows
    int64_t rows, columns;
    float* output;
};

// output[r, c] = left[r, c] + right[r, c]
struct fxq_add_arguments {
    const float* left;
    int64_t left_stride;
    const float* right;
    int64_t right_stride;
    int64_t rows, columns;
    float* output;                // rows one behind another
};

// output[r, n] = bias[n] + sum_k input[r, k] * weight[k, n], all in float
struct fxq_dense_arguments {
    const float* input;
    int64_t input_stride;         // between rows
    int64_t rows, inner, columns;
    const float* weight;          // [inner][columns]
    const float* bias;            // [columns]
    float* output;                // rows one behind another
};

int64_t fxq_panel(void);                                  // columns of a packed panel
int64_t fxq_packed_bytes(int64_t columns, int64_t inner); // of fxq_pack_weight's output
void fxq_pack_weight(const int8_t* weight, int64_t columns, int64_t inner, int8_t* packed);
void fxq_linear(const struct fxq_linear_arguments*, int32_t part, int32_t parts);
void fxq_mix(const struct fxq_mix_arguments*, int32_t part, int32_t parts);
void fxq_norm(const struct fxq_norm_arguments*, int32_t part, int32_t parts);
int64_t fxq_attention_scratch(const struct fxq_attention_arguments*);
void fxq_attention(const struct fxq_attention_arguments*, int32_t part, int32_t parts);
int64_t fxq_float_attention_scratch(const struct fxq_float_attention_arguments*);
void fxq_float_attention(const struct fxq_float_attention_arguments*, int32_t part, int32_t parts);
void fxq_patches(const struct fxq_patches_arguments*, int32_t part, int32_t parts);

void fxq_gather(const struct fxq_gather_arguments*, int32_t part, int32_t parts);
void fxq_mean(const struct fxq_mean_arguments*, int32_t part, int32_t parts);
void fxq_add(const struct fxq_add_arguments*, int32_t part, int32_t parts);
void fxq_dense(const struct fxq_dense_arguments*, int32_t part, int32_t parts);

}  // extern "C"
#pragma GCC visibility pop
