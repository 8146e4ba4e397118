"""PyTorch checkpoints to NNX modules and back. Weights are read from safetensors only, so that no code can run."""
