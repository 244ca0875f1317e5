// What cupy_gpu.cu needs of CUDA, on a processor: a block's threads are fibres of one thread, and meet where warps and
// blocks meet on a GPU. Blocks run one after the other. Slow, and the same result every time.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

using std::isfinite;

struct float4 { float x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Position { unsigned x; };
static Position threadIdx, blockIdx, blockDim, gridDim;

template <typename T> inline T __ldcg(const T *address) { return *address; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }

// fp16 by its definition; the kernel only asks for numbers that fit it, or for the nearest of small ones.
inline float half_to_float(unsigned short bits) {
    int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    float size = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp((float)mantissa, -24);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

inline unsigned short float_to_half(float value) {
    unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    float size = std::fabs(value);
    if (std::isnan(value)) return 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-05f) return sign | (unsigned short)std::nearbyint(size * 16777216.0f);
    int exponent;
    float fraction = std::frexp(size, &exponent);
    unsigned mantissa = (unsigned)std::nearbyint(fraction * 2048.0f);  // 1024 ... 2048
    return sign | (unsigned short)(((exponent + 14) << 10) + mantissa - 1024);
}

#define HALF_TO_FLOAT(value, bits) (value) = half_to_float(bits)
#define FLOAT_TO_HALF(bits, value) (bits) = float_to_half(value)

template <typename T> inline T atomicAdd(T *address, T change) { T old = *address; *address = old + change; return old; }

// -------------------------------------------------------------------------------------------------- fibres ----

struct Meeting { unsigned arrived = 0, generation = 0; };

struct Fibre { ucontext_t context; jmp_buf place; bool started, done; unsigned parity; };

static std::vector<Fibre> fibres;
static std::vector<char> stacks;
static std::vector<Meeting> warps;
static std::vector<float> exchanged;  // [warp][2][32]
static Meeting whole_block;
static jmp_buf scheduler;

// Contexts only begin a fibre; from then on jumps switch, which ask nothing of the system and are ten times as fast.
inline void yield() {
    if (!_setjmp(fibres[threadIdx.x].place)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) static void resume(Fibre &fibre) {
    if (_setjmp(scheduler)) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    setcontext(&fibre.context);
}

inline void meet(Meeting &meeting, unsigned expected) {
    unsigned generation = meeting.generation;
    if (++meeting.arrived == expected) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    while (meeting.generation == generation) yield();
}

inline void __syncwarp() { meet(warps[threadIdx.x / 32], 32); }
inline void __syncthreads() { meet(whole_block, blockDim.x); }

inline float __shfl_sync(unsigned, float value, int source) {
    unsigned warp = threadIdx.x / 32;
    unsigned parity = fibres[threadIdx.x].parity ^= 1;  // two rooms in turn: nobody can be two exchanges ahead
    float *room = &exchanged[(2 * warp + parity) * 32];
    room[threadIdx.x % 32] = value;
    meet(warps[warp], 32);
    return room[source & 31];
}

inline unsigned __shfl_sync(unsigned lanes, unsigned value, int source) {
    return __float_as_uint(__shfl_sync(lanes, __uint_as_float(value), source));
}

inline float __shfl_xor_sync(unsigned lanes, float value, int distance) {
    return __shfl_sync(lanes, value, (int)(threadIdx.x % 32) ^ distance);
}

struct Launch;
static void (*running)(const Launch *);
static const Launch *arguments_of_running;

inline void fibre_main() {
    running(arguments_of_running);
    fibres[threadIdx.x].done = true;
    while (true) yield();
}

inline void run_block(unsigned n_threads) {
    const size_t stack = 1 << 16;
    fibres.resize(n_threads);
    stacks.resize(stack * n_threads);
    warps.assign(n_threads / 32, Meeting());
    exchanged.assign(n_threads * 2, 0.0f);
    whole_block = Meeting();
    for (unsigned thread = 0; thread < n_threads; thread++) {
        Fibre &fibre = fibres[thread];
        fibre.started = fibre.done = false;
        fibre.parity = 0;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = &stacks[stack * thread];
        fibre.context.uc_stack.ss_size = stack;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, fibre_main, 0);
    }
    for (unsigned left = n_threads; left;) {
        left = 0;
        for (unsigned thread = 0; thread < n_threads; thread++) {
            if (fibres[thread].done) continue;
            threadIdx.x = thread;
            resume(fibres[thread]);
            left += !fibres[thread].done;
        }
    }
}

// Runs a kernel on a grid; the caller has filled `shared_memory` with whatever a GPU might leave there.
inline void run_grid(void (*kernel)(const Launch *), unsigned grid, unsigned block, const Launch *arguments) {
    running = kernel;
    arguments_of_running = arguments;
    gridDim.x = grid;
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) run_block(block);
}
