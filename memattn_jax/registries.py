"""The names of detectors, mitigations, schedulers and presets, mapped to their code without importing JAX.

A name is a shorthand of the command line and of arguments that also take the object itself: yours needs none.
"""

from importlib import import_module
from typing import Any

DETECTORS = {  # name: what it needs, and the class
    "entropy_e": ("first step", "memattn_jax.detectors.entropy_metrics:EntropyE"),
    "noise_norm": ("first step", "memattn_jax.detectors.noise_norm:NoiseNorm"),
    "sharpness": ("first step", "memattn_jax.detectors.sharpness:Sharpness"),
    "anisotropy": ("first step", "memattn_jax.detectors.anisotropy:Anisotropy"),
    "hessian_difference": ("first step", "memattn_jax.detectors.hessian_difference:HessianDifference"),
    "prediction_agreement": ("first step", "memattn_jax.detectors.prediction_agreement:PredictionAgreement"),
    "dsm": ("first step", "memattn_jax.detectors.dsm:Dsm"),
    "condition_jacobian": ("first step", "memattn_jax.detectors.condition_jacobian:ConditionJacobian"),
    "entropy_d": ("trajectory", "memattn_jax.detectors.entropy_metrics:EntropyD"),
    "entropy_d_paper": ("trajectory", "memattn_jax.detectors.entropy_metrics:EntropyDPaper"),
    "noise_norm_steps": ("trajectory", "memattn_jax.detectors.noise_norm:NoiseNormSteps"),
    "bright_ending": ("trajectory", "memattn_jax.detectors.bright_ending:BrightEnding"),
    "latent_step_deviation": ("trajectory", "memattn_jax.detectors.latent_step_deviation:LatentStepDeviation"),
    "bottleneck_spikiness": ("image", "memattn_jax.detectors.bottleneck_spikiness:BottleneckSpikiness"),
    "text_baseline": ("prompt", "memattn_jax.detectors.text_baseline:TextBaseline"),
}
FIRST_STEP = tuple(name for name, (needs, _) in DETECTORS.items() if needs == "first step")

MITIGATIONS = {
    "attention_mask": "memattn_jax.mitigations.attention_mask:AttentionMask",
    "clip_embedding": "memattn_jax.mitigations.clip_embedding:ClipEmbedding",
    "embedding_noise": "memattn_jax.mitigations.embedding_noise:EmbeddingNoise",
    "embedding_optimization": "memattn_jax.mitigations.embedding_optimization:EmbeddingOptimization",
    "guard_guidance": "memattn_jax.mitigations.guard_guidance:GuardGuidance",
    "guidance_transition": "memattn_jax.mitigations.guidance_transition:GuidanceTransition",
    "noise_optimization": "memattn_jax.mitigations.noise_optimization:NoiseOptimization",
    "noise_perturbation": "memattn_jax.mitigations.noise_perturbation:NoisePerturbation",
    "paraphrase_guidance": "memattn_jax.mitigations.paraphrase_guidance:ParaphraseGuidance",
    "pruned_weights": "memattn_jax.mitigations.pruned_weights:PrunedWeights",
    "random_numbers": "memattn_jax.mitigations.random_words:RandomNumbers",
    "random_tokens": "memattn_jax.mitigations.random_words:RandomTokens",
    "repeated_words": "memattn_jax.mitigations.random_words:RepeatedWords",
    "spike_attenuation": "memattn_jax.mitigations.spike_attenuation:SpikeAttenuation",
    "stability_clamp": "memattn_jax.mitigations.stability_clamp:StabilityClamp",
    "value_neurons": "memattn_jax.mitigations.value_neurons:ValueNeurons",
}

SCHEDULERS = {  # name: function that makes the schedule of a SchedulerConfig and a number of steps
    "ddim": "memattn_jax.schedulers.ddim:ddim",
    "pndm": "memattn_jax.schedulers.pndm:pndm",
    "euler": "memattn_jax.schedulers.euler:euler",
    "euler-ancestral": "memattn_jax.schedulers.euler_ancestral:euler_ancestral",
    "dpm-solver++": "memattn_jax.schedulers.dpm_solver:dpm_solver",
    "dpm-solver++-sde": "memattn_jax.schedulers.dpm_solver_sde:dpm_solver_sde",
    "lcm": "memattn_jax.schedulers.lcm:lcm",
}

PRESETS = {  # preparation of images for SSCD: similarity from which those who use it count a copy
    "official": 0.75,  # 90 % precision on DISC with sscd_disc_mixup, says its README
    "nemo": 0.7,
    "wen": 0.7,
    "dcr": 0.5,
}

DTYPES = ("float32", "bfloat16", "float16")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that programs are exported for


def load(path: str) -> Any:
    """Imports "module:name"."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
