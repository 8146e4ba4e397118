"""Stable Diffusion's three networks in Flax NNX. Module paths are PyTorch's, arrays are channels-last."""
