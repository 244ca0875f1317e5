// cupy_gpu.cu as a shared library: its kernels by name, on the fibres of cuda.hpp.
#include "cuda.hpp"

#include CUDA_SOURCE

float4 shared_memory[1 << 14];

extern "C" int record_bytes() { return (int)sizeof(Launch); }

extern "C" int run(const char *name, unsigned grid, unsigned block, unsigned shared_bytes, const Launch *arguments) {
    if (block % 32 || shared_bytes > sizeof(shared_memory)) return 2;
    std::memset(shared_memory, 0xff, sizeof(shared_memory));  // a GPU clears nothing either
    float4 guard = shared_memory[0];
    if (!std::strcmp(name, "train_rows")) run_grid(train_rows, grid, block, arguments);
    else if (!std::strcmp(name, "score_rows")) run_grid(score_rows, grid, block, arguments);
    else if (!std::strcmp(name, "refresh_weights")) run_grid(refresh_weights, grid, block, arguments);
#if FACTOR_BITS == 16
    else if (!std::strcmp(name, "narrow_factors")) run_grid(narrow_factors, grid, block, arguments);
    else if (!std::strcmp(name, "widen_factors")) run_grid(widen_factors, grid, block, arguments);
#endif
    else return 1;
    // What lies beyond the shared memory that was asked for must be as it was.
    size_t used = (shared_bytes + sizeof(float4) - 1) / sizeof(float4);
    for (size_t place = used; place < sizeof(shared_memory) / sizeof(float4); place++)
        if (std::memcmp(&shared_memory[place], &guard, sizeof(float4))) return 3;
    return 0;
}
