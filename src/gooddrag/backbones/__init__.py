"""Diffusion models that can be dragged with, and the adapters they take."""
