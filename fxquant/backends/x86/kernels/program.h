// A lowered graph as data: steps that call kernels, and where their pointers lie. The whole program
// is one block of bytes without pointers: a header, then steps, places and argument blocks.
#pragma once

#include <cstdint>

// Where a pointer of an argument block points: base of its space + place of the buffer + offset in
// it + image * image_stride, all in bytes. Spaces: the constants, the arena of the threads that share the image, scratch of
// one thread, then the caller's tensors (inputs, then outputs).
enum { FXQ_CONSTANTS = 0, FXQ_ARENA = 1, FXQ_SCRATCH = 2, FXQ_TENSORS = 3 };

struct fxq_place {
    int32_t field;  // byte offset of the pointer in the argument block
    int32_t space;
    int64_t buffer;        // for one image: a micro-batch of m images moves it to m * buffer
    int64_t offset;
    int64_t image_stride;
};

struct fxq_step {
    int32_t kernel;
    int32_t waits;        // whether all threads of the group must have ended the steps before
    int32_t first_place;
    int32_t places;
    int64_t block;        // byte offset of the argument block in the program
    int64_t block_bytes;
};

struct fxq_header {
    int64_t steps, first_step;    // count, byte offset
    int64_t places, first_place;
    int64_t arena_bytes;          // per image
    int64_t scratch_bytes;        // per thread
    int64_t tensors;
};

enum {
    FXQ_STEP_LINEAR = 0,
    FXQ_STEP_MIX = 1,
    FXQ_STEP_NORM = 2,
    FXQ_STEP_ATTENTION = 3,
    FXQ_STEP_FLOAT_ATTENTION = 4,
    FXQ_STEP_PATCHES = 5,
    FXQ_STEP_GATHER = 6,
    FXQ_STEP_MEAN = 7,
    FXQ_STEP_ADD = 8,
    FXQ_STEP_DENSE = 9,
};

#pragma GCC visibility push(default)
extern "C" {

// Bytes of workspace that fxq_run needs.
int64_t fxq_workspace(const uint8_t* program, int64_t images, int32_t threads, int32_t micro);

// Run a program on a batch. `tensors`: inputs, then outputs. `micro`: images that go through the
// steps together. `profile`: null, or nanoseconds per step, added up over micro-batches as the
// first thread sees them. Returns 0, or 1 + the number of a step with an unknown kernel.
int32_t fxq_run(const uint8_t* program, const uint8_t* constants, uint8_t* const* tensors,
                uint8_t* workspace, int64_t images, int32_t threads, int32_t micro,
                int64_t* profile);

}  // extern "C"
#pragma GCC visibility pop
