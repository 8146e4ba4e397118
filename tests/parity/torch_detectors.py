"""The detectors in PyTorch, on diffusers' UNet: from the papers' formulas, one prompt and one probe at a time.

Latents are [1, channels, h, w]; x is latents, e a text embedding, a an attention map or its mean, t a timestep.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch_mitigations import structural_similarity

ENTROPY_LAYER = 3  # "the fourth layer", counted from 0


class RecordingProcessor:
    """Attention written out, so that it can be differentiated twice; text attention is recorded."""

    def __init__(self, site: str, recorded: dict[str, torch.Tensor]):
        self.site, self.recorded = site, recorded

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        probs = torch.softmax(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, dim=-1)
        if encoder_hidden_states is not None:
            self.recorded[self.site] = probs.detach()  # [rows, heads, pixels, tokens]
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


def norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x)


def entropy(a: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(a, a).sum(-1)


class TorchDetectors:
    """A folder's model with its DDIM schedule; probes are drawn by the caller."""

    def __init__(self, folder: Path, steps: int, dtype: torch.dtype = torch.float32):
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.tokenizer, self.text_encoder = pipe.tokenizer, pipe.text_encoder
        self.unet = pipe.unet.to(dtype).requires_grad_(False)
        self.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(steps)
        self.timesteps = self.scheduler.timesteps
        self.velocity = self.scheduler.config.prediction_type == "v_prediction"
        self.dtype = dtype
        self.recorded: dict[str, torch.Tensor] = {}
        names = [name.removesuffix(".processor") for name in self.unet.attn_processors]
        # Keys of this dictionary are in the order of definition, up before mid; forward order is that of recording.
        self.unet.mid_block.register_forward_hook(lambda module, given, output: setattr(self, "middle", output))
        self.unet.set_attn_processor({f"{n}.processor": RecordingProcessor(n, self.recorded) for n in names})
        self.empty = self.embed("")

    def embed(self, prompt: str) -> torch.Tensor:
        """[1, tokens, channels]."""
        ids = self.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            return self.text_encoder(ids)[0].to(self.dtype)

    def length(self, prompt: str) -> int:
        return len(self.tokenizer(prompt).input_ids)

    def alpha_sigma(self, t: torch.Tensor | int) -> tuple[float, float]:
        signal = self.scheduler.alphas_cumprod[t].double()
        return float(signal.sqrt()), float((1 - signal).sqrt())

    def raw(self, x: torch.Tensor, t: torch.Tensor | int, e: torch.Tensor) -> torch.Tensor:
        """What the UNet puts out."""
        return self.unet(x, t, e).sample

    def eps(self, x: torch.Tensor, t: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """The noise prediction."""
        if not self.velocity:
            return self.raw(x, t, e)
        alpha, sigma = self.alpha_sigma(t)
        return alpha * self.raw(x, t, e) + sigma * x

    def score_difference(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """s_c − s_u at the first step, s = −ε / σ."""
        t = self.timesteps[0]
        _, sigma = self.alpha_sigma(t)
        return -(self.eps(x, t, e) - self.eps(x, t, self.empty)) / sigma

    def sharpness_product(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """J v with J the derivative of s_c − s_u and v its value; Jᵀ w is linear in w, and J v its derivative along v.

        torch.func.jvp differentiates a group norm through torch.jit.script, which is deprecated.
        """
        x = x.clone().requires_grad_()
        v = self.score_difference(x, e)
        w = torch.zeros_like(v).requires_grad_()
        (pulled,) = torch.autograd.grad(v, x, w, create_graph=True)
        return torch.autograd.grad(pulled, w, v.detach())[0]

    def context_product(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """The derivative of ε by the embedding, along that less the empty prompt's; as above."""
        e = e.clone().requires_grad_()
        eps = self.eps(x, self.timesteps[0], e)
        w = torch.zeros_like(eps).requires_grad_()
        (pulled,) = torch.autograd.grad(eps, e, w, create_graph=True)
        return torch.autograd.grad(pulled, w, (e - self.empty).detach())[0]

    @torch.no_grad()
    def second_step(self, x: torch.Tensor, e: torch.Tensor, scale: float = 7.5) -> torch.Tensor:
        """What one guided step changes of the prompt's prediction."""
        t, after = self.timesteps[:2]
        u, c = self.raw(x, t, self.empty), self.raw(x, t, e)
        moved = self.scheduler.step(u + scale * (c - u), t, x).prev_sample
        return self.eps(moved, after, e) - self.eps(x, t, e)

    def other_noise(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """The probe's numbers, permuted; their order is that of our last axes."""
        flat = x[0].permute(1, 2, 0).flatten()
        order = np.random.default_rng(number).permutation(len(flat))
        return flat[torch.from_numpy(order)].reshape(*x.shape[2:], x.shape[1]).permute(2, 0, 1)[None]

    @torch.no_grad()
    def spikiness(self, latents: torch.Tensor, noise: torch.Tensor, t: int = 50) -> torch.Tensor:
        """Of the middle block for an image with noise, and no prompt."""
        alpha, sigma = self.alpha_sigma(t)
        self.raw(alpha * latents + sigma * noise, t, self.empty)
        return self.middle.std(unbiased=False)

    @torch.no_grad()
    def agreement(self, x: torch.Tensor, e: torch.Tensor, noises: int = 4, kernel: int = 3) -> torch.Tensor:
        """NeMo's, over the probe and others with its numbers permuted; latents of 4 pixels have one scale."""
        found = []
        for number in range(noises):
            noise = self.other_noise(x, number) if number else x
            difference = self.eps(noise, self.timesteps[0], e)[0] - noise[0]
            low, high = difference.amin((1, 2), keepdim=True), difference.amax((1, 2), keepdim=True)
            found.append(((difference - low) / (high - low)).float())
        pairs = itertools.combinations(found, 2)
        return torch.tensor(max(structural_similarity(a, b, kernel, 1) for a, b in pairs), dtype=x.dtype)

    def first_step(self, x: torch.Tensor, prompt: str) -> dict[str, torch.Tensor]:
        """Scores through one probe; "attention" is [tokens]."""
        e, t = self.embed(prompt), self.timesteps[0]
        alpha, sigma = self.alpha_sigma(t)
        with torch.no_grad():
            u = self.raw(x, t, self.empty)
            c = self.raw(x, t, e)
        layers = [a[0].mean(dim=(0, 1)) for a in self.recorded.values()]  # the last call's, the prompt's
        scores = {"entropy_e": entropy(layers[ENTROPY_LAYER]), "attention": torch.stack(layers).mean(0)}
        scores["noise_norm"] = norm(alpha * (c - u) if self.velocity else c - u)

        scores["sharpness"] = norm(self.sharpness_product(x, e))
        scores["prediction_agreement"] = self.agreement(x, e)
        scores["condition_jacobian"] = norm(self.context_product(x, e))
        scores["dsm"] = norm(self.second_step(x, e)) ** 2

        with torch.no_grad():
            late_u, late_c = (self.raw(x, self.timesteps[-3], context) for context in (self.empty, e))
        cosine = torch.cosine_similarity(late_u, late_c - late_u, dim=1).mean()
        if self.velocity:
            scores["anisotropy"] = norm(alpha / sigma**2 * (c - u)) + 0.1 * cosine
        else:
            scores["anisotropy"] = norm(c - u) + 2 * cosine

        gradients = []
        for context in (e, self.empty):
            z = x.clone().requires_grad_()
            energy = 0.5 * (self.eps(z, t, context) ** 2).sum()
            gradients += torch.autograd.grad(energy, z)
        scores["hessian_difference"] = ((gradients[0] - gradients[1]) ** 2).sum()
        return scores

    def sharpness_by_differences(self, x: torch.Tensor, prompt: str, h: float) -> torch.Tensor:
        """The same derivative from two values of s on either side."""
        e = self.embed(prompt)
        with torch.no_grad():
            v = self.score_difference(x, e)
            return norm(self.score_difference(x + h * v, e) - self.score_difference(x - h * v, e)) / (2 * h)

    def token_gradients(self, probes: torch.Tensor, prompt: str) -> torch.Tensor:
        """‖∂ mean over probes ‖ε_c − ε_u‖ / ∂ eᵢ‖ of each token, [tokens]; probes are [probes, channels, h, w]."""
        e, t = self.embed(prompt).requires_grad_(), self.timesteps[0]
        norms = [norm(self.eps(x[None], t, e) - self.eps(x[None], t, self.empty)) for x in probes]
        (gradient,) = torch.autograd.grad(torch.stack(norms).mean(), e)
        return torch.linalg.vector_norm(gradient[0], dim=-1)

    def token_gradients_of_a_pair(self, probes: torch.Tensor, prompt: str) -> torch.Tensor:
        """As Wen et al.'s code has it: both rows of the guidance pair less the unconditional one, their norms' mean."""
        e, t = self.embed(prompt).requires_grad_(), self.timesteps[0]
        norms = []
        for x in probes:
            pair = self.eps(torch.stack([x, x]), t, torch.cat([self.empty, e]))
            norms.append(torch.linalg.vector_norm(pair - pair[:1], dim=(1, 2, 3)).mean())
        (gradient,) = torch.autograd.grad(torch.stack(norms).mean(), e)
        return torch.linalg.vector_norm(gradient[0], dim=-1)

    @torch.no_grad()
    def trajectory(
        self, x: torch.Tensor, prompt: str, scale: float, chosen: tuple[int, ...], clean: tuple[torch.Tensor, ...]
    ) -> dict:
        """Scores of one guided run from one noise.

        `chosen` are the steps of `noise_norm_steps`, `clean` are mean and deviation of clean runs' steps.
        """
        context, length = torch.cat([self.empty, self.embed(prompt)]), self.length(prompt)
        attention, differences, moves, noise = [], [], [], self.other_noise(x, 1)
        for t in self.timesteps:
            u, c = self.raw(torch.cat([x, x]), t, context).chunk(2)
            alpha, _ = self.alpha_sigma(t)
            differences.append(alpha * (c - u) if self.velocity else c - u)
            attention.append(torch.stack([a[1].mean(dim=(0, 1)) for a in self.recorded.values()]).mean(0))
            moved = self.scheduler.step(u + scale * (c - u), t, x).prev_sample
            moves.append(norm(moved - x))
            x = moved
        finest = [a[1] for site, a in self.recorded.items() if site.startswith("down_blocks.0")]
        mask = torch.stack([a[:, :, length - 1].mean(0) for a in finest]).mean(0).reshape(x.shape[-2:])

        last = len(attention) // 5
        e = torch.stack([entropy(a) for a in attention])
        s = torch.stack([entropy(a[length - 1 :]) for a in attention])
        norms = torch.stack([norm(d) for d in differences])
        return {
            "entropy_d": e[-last:].mean() + s[-last:].mean() - s[0],
            "entropy_d_paper": e[-last:].mean() + (s[-last:] - s[0]).abs().mean(),
            "noise_norm_steps": norms[list(chosen)].mean(),
            "bright_ending": torch.stack([norm(d * mask) for d in differences]).mean() / mask.mean(),
            "bottleneck_spikiness": self.spikiness(x, noise),
            "latent_step_deviation": ((torch.stack(moves) - clean[0]).abs() / clean[1]).max(),
        }
