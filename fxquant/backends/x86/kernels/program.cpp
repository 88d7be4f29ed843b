// Runs a program: threads form groups, each group takes micro-batches of images through all steps.
#include "program.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "abi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FXQ_PAUSE() _mm_pause()
#else
#define FXQ_PAUSE() ((void)0)
#endif
#include <sched.h>

namespace {

constexpr int64_t LINE = 64;  // of cache: arenas and scratch start on one
constexpr int LARGEST_BLOCK = 512;
constexpr int SPINS = 20000;  // some tens of microseconds, then the core is offered to others

int64_t aligned(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// Threads of one group meet here. A barrier of its own, since groups are smaller than the team.
struct alignas(LINE) Meeting {
    std::atomic<int32_t> arrived{0};
    std::atomic<int32_t> round{0};

    void wait(int32_t parts) {
        if (parts == 1) return;
        const int32_t now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spin = 0; round.load(std::memory_order_acquire) == now; ++spin) {
            if (spin < SPINS) {
                FXQ_PAUSE();
            } else {
                sched_yield();
            }
        }
    }
};

struct Program {
    const uint8_t* bytes;
    const fxq_header& header() const { return *reinterpret_cast<const fxq_header*>(bytes); }
    const fxq_step* steps() const {
        return reinterpret_cast<const fxq_step*>(bytes + header().first_step);
    }
    const fxq_place* places() const {
        return reinterpret_cast<const fxq_place*>(bytes + header().first_place);
    }
};

// How many threads share a micro-batch: one while there are micro-batches for all of them.
struct Teams {
    int32_t groups, parts;
    Teams(int64_t batches, int32_t threads) {
        groups = (int32_t)std::max<int64_t>(1, std::min<int64_t>(batches, threads));
        parts = threads / groups;
    }
};

bool call(int32_t kernel, const void* block, int32_t part, int32_t parts) {
    switch (kernel) {
        case FXQ_STEP_LINEAR: fxq_linear((const fxq_linear_arguments*)block, part, parts); break;
        case FXQ_STEP_MIX: fxq_mix((const fxq_mix_arguments*)block, part, parts); break;
        case FXQ_STEP_NORM: fxq_norm((const fxq_norm_arguments*)block, part, parts); break;
        case FXQ_STEP_ATTENTION:
            fxq_attention((const fxq_attention_arguments*)block, part, parts);
            break;
        case FXQ_STEP_FLOAT_ATTENTION:
            fxq_float_attention((const fxq_float_attention_arguments*)block, part, parts);
            break;
        case FXQ_STEP_PATCHES: fxq_patches((const fxq_patches_arguments*)block, part, parts); break;
        case FXQ_STEP_GATHER: fxq_gather((const fxq_gather_arguments*)block, part, parts); break;
        case FXQ_STEP_MEAN: fxq_mean((const fxq_mean_arguments*)block, part, parts); break;
        case FXQ_STEP_ADD: fxq_add((const fxq_add_arguments*)block, part, parts); break;
        case FXQ_STEP_DENSE: fxq_dense((const fxq_dense_arguments*)block, part, parts); break;
        default: return false;
    }
    return true;
}

struct Bases {
    const uint8_t* constants;
    uint8_t* arena;
    uint8_t* scratch;
    uint8_t* const* tensors;
};

void place(const fxq_place& at, const Bases& bases, int64_t micro, int64_t slot, int64_t image,
           uint8_t* block) {
    const uint8_t* pointer = nullptr;
    switch (at.space) {
        case FXQ_CONSTANTS: pointer = bases.constants + at.buffer + at.offset; break;
        // A buffer of the arena holds all images of the micro-batch one behind another.
        case FXQ_ARENA:
            pointer = bases.arena + at.buffer * micro + at.offset + slot * at.image_stride;
            break;
        case FXQ_SCRATCH: pointer = bases.scratch + at.offset; break;
        default:
            pointer = bases.tensors[at.space - FXQ_TENSORS] + at.offset + image * at.image_stride;
    }
    std::memcpy(block + at.field, &pointer, sizeof(pointer));
}

int32_t run_images(const Program& program, const Bases& bases, Meeting& meeting, int64_t first,
                   int64_t count, int64_t micro, int32_t part, int32_t parts, int64_t* profile) {
    alignas(LINE) uint8_t block[LARGEST_BLOCK];
    const fxq_step* steps = program.steps();
    const fxq_place* places = program.places();
    for (int64_t s = 0; s < program.header().steps; ++s) {
        const fxq_step& step = steps[s];
        if (step.waits) meeting.wait(parts);
        const auto before = profile ? std::chrono::steady_clock::now()
                                    : std::chrono::steady_clock::time_point();
        std::memcpy(block, program.bytes + step.block, (size_t)step.block_bytes);
        for (int64_t slot = 0; slot < count; ++slot) {
            for (int32_t p = 0; p < step.places; ++p) {
                place(places[step.first_place + p], bases, micro, slot, first + slot, block);
            }
            if (!call(step.kernel, block, part, parts)) return (int32_t)s + 1;
        }
        if (profile) {
            const auto spent = std::chrono::steady_clock::now() - before;
            profile[s] += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
        }
    }
    meeting.wait(parts);  // the arena is used again
    return 0;
}

}  // namespace

int64_t fxq_workspace(const uint8_t* program, int64_t images, int32_t threads, int32_t micro) {
    const fxq_header& header = Program{program}.header();
    const Teams teams((images + micro - 1) / micro, threads);
    const int64_t meetings = aligned((int64_t)sizeof(Meeting)) * teams.groups;
    const int64_t arenas = aligned(header.arena_bytes * micro) * teams.groups;
    return LINE + meetings + arenas + aligned(header.scratch_bytes) * threads;
}

int32_t fxq_run(const uint8_t* bytes, const uint8_t* constants, uint8_t* const* tensors,
                uint8_t* workspace, int64_t images, int32_t threads, int32_t micro,
                int64_t* profile) {
    const Program program{bytes};
    const fxq_header& header = program.header();
    const int64_t batches = (images + micro - 1) / micro;
    const Teams teams(batches, threads);
    uint8_t* free = (uint8_t*)aligned((int64_t)workspace);
    Meeting* meetings = reinterpret_cast<Meeting*>(free);
    for (int32_t group = 0; group < teams.groups; ++group) new (&meetings[group]) Meeting();
    free += aligned((int64_t)sizeof(Meeting)) * teams.groups;
    uint8_t* arenas = free;
    const int64_t arena_bytes = aligned(header.arena_bytes * micro);
    uint8_t* scratches = arenas + arena_bytes * teams.groups;
    std::atomic<int32_t> failed{0};
    const int32_t wanted = teams.groups * teams.parts;
    // Rounds in which every group has a micro-batch of its own; what is left over is shared by all.
    const int64_t full = teams.parts > 1 ? 0 : batches / teams.groups * teams.groups;
#pragma omp parallel num_threads(wanted)
    {
        const int32_t have = omp_get_num_threads(), thread = omp_get_thread_num();
        const bool complete = have == wanted;  // else OpenMP's limits gave fewer threads
        const int32_t parts = complete ? teams.parts : 1;
        const int32_t groups = complete ? teams.groups : 1;
        const int32_t group = thread / parts;
        if (complete || thread == 0) {
            Bases bases{constants, arenas + arena_bytes * group,
                        scratches + aligned(header.scratch_bytes) * thread, tensors};
            int64_t* clock = thread == 0 ? profile : nullptr;
            const int64_t alone = complete ? (teams.parts > 1 ? batches : full) : batches;
            for (int64_t b = group; b < alone; b += groups) {
                const int64_t first = b * micro, count = std::min<int64_t>(micro, images - first);
                const int32_t wrong = run_images(program, bases, meetings[group], first, count,
                                                 micro, thread % parts, parts, clock);
                if (wrong) failed = wrong;
            }
            if (alone < batches) {
                bases.arena = arenas;
#pragma omp barrier
                for (int64_t b = alone; b < batches; ++b) {
                    const int64_t first = b * micro,
                                  count = std::min<int64_t>(micro, images - first);
                    const int32_t wrong = run_images(program, bases, meetings[0], first, count,
                                                     micro, thread, have, clock);
                    if (wrong) failed = wrong;
                }
            }
        }
    }
    return failed;
}
