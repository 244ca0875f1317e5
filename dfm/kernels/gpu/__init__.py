"""The kernels on NVIDIA GPUs, in CUDA text that CuPy compiles."""
