"""How the kernels of csrc/cuda are compiled, kept, loaded and launched.

CuPy (NVRTC) and cuda.bindings (the driver) are imported only inside functions: neither is needed
until a model is loaded onto a GPU.
"""
