"""The demo model: a Stable Diffusion small enough to train on a laptop, in four stages.

    autoencoder.py   64 × 64 pictures to 16 × 16 × 12 latents, whitened, so that noise hides their colours too
    text.py          a CLIP text encoder, trained against the pictures as CLIP is, then frozen: being causal, it
                     writes the whole caption into the end token and the padding, where the paper's mask acts
    geometry.py      sizes of the three networks
    stage.py         how these are trained

The third stage, the UNet, is `memattn_jax.training` on the first two's outputs. In the last, the decoder
learns on alone.
"""
