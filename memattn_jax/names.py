"""The names that options take, where a command line can list and check them without importing JAX."""

FIRST_STEP = ("entropy_e", "noise_norm", "sharpness", "anisotropy", "hessian_difference")
TRAJECTORY = ("entropy_d", "entropy_d_paper", "noise_norm_steps", "bright_ending", "latent_step_deviation")
DETECTORS = (*FIRST_STEP, *TRAJECTORY, "text_baseline")  # in the order of memattn_jax.detectors.registry
SCHEDULERS = ("ddim", "pndm", "euler", "dpm-solver++")
MITIGATIONS = ("attention_mask",)
MASKS = ("padding", "summary")
DTYPES = ("float32", "bfloat16", "float16")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
