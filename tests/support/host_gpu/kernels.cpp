// A .cu of dfm as a shared library: its kernels by name, on the fibres of cuda.hpp. The file is compiled with the names of
// its kernels in KERNELS: X(name) for each.
#include "cuda.hpp"

#include CUDA_SOURCE

float4 shared_memory[1 << 14];

extern "C" int record_bytes() { return (int)sizeof(Launch); }

extern "C" int run(const char *name, unsigned grid, unsigned block, unsigned shared_bytes, const Launch *arguments) {
    if (block % 32 || shared_bytes > sizeof(shared_memory)) return 2;
    std::memset(shared_memory, 0xff, sizeof(shared_memory));  // a GPU clears nothing either
    float4 guard = shared_memory[0];
    void (*kernel)(const Launch *) = nullptr;
#define X(kernel_name) if (!std::strcmp(name, #kernel_name)) kernel = kernel_name;
    KERNELS
#undef X
    if (!kernel) return 1;
    run_grid(kernel, grid, block, arguments);
    // What lies beyond the shared memory that was asked for must be as it was.
    size_t used = (shared_bytes + sizeof(float4) - 1) / sizeof(float4);
    for (size_t place = used; place < sizeof(shared_memory) / sizeof(float4); place++)
        if (std::memcmp(&shared_memory[place], &guard, sizeof(float4))) return 3;
    return 0;
}
