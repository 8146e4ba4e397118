"""Checkpoints that PyTorch wrote, to NNX modules and back. Weights are read from safetensors alone: no code can run."""
