"""How attention and convolutions are computed: one form for each platform and shape, all equal to 1e-5.

A form is chosen when a program is lowered, by the platform that it is lowered for. Choices on the CPU were measured at
the sizes of Stable Diffusion 1.4; `scripts/bench.py` measures what they come to in the whole model.
"""
