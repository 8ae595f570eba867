"""Triton kernels for parts of a frozen UNet; imported on CUDA only."""
