"""SSCD, the descriptor by which the field measures copies.

presets.py                      how papers prepare pictures
network.py                      the network
names.py  frozen.py             names of its tensors in each kind of file
onnx_*.py                       the same in ONNX
loading.py                      a file's network
descriptor.py                   a network and a preset, which `copies.embedding.embed` takes
"""

from memattn_jax.copies.sscd.descriptor import Descriptor, load_sscd
from memattn_jax.copies.sscd.presets import PRESETS, Preset

__all__ = ["PRESETS", "Descriptor", "Preset", "load_sscd"]
