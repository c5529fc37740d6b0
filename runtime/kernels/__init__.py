"""Triton kernels, each beside its naive twin in torch. They run on the GPU, and through Triton's interpreter."""
