"""The mitigations in PyTorch, from the papers' formulas, one row at a time: x is latents, e a text embedding."""

import math
from collections.abc import Callable, Sequence

import torch

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # latents and embedding to the UNet's output


def optimise_embedding(predict: Predict, x, e, empty, *, target: float, rate: float, iterations: int) -> torch.Tensor:
    """Wen et al."""
    with torch.no_grad():
        unconditional = predict(x, empty)
    e = e.clone().requires_grad_()
    optimizer = torch.optim.AdamW([e], lr=rate)
    for _ in range(iterations):
        loss = torch.linalg.vector_norm(predict(x, e) - unconditional)
        if loss.item() <= target:
            break
        (e.grad,) = torch.autograd.grad(loss, e)
        e.grad[:, 0] = 0
        optimizer.step()
    return e.detach()


def optimise_noise(predict: Predict, x, e, empty, *, threshold, weight, rate, iterations) -> torch.Tensor:
    """SAIL, with D at the current noise."""

    def pull(x):
        return predict(x, e) - predict(x, empty)

    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rate)
    for _ in range(iterations):
        here = pull(x)
        flat = torch.linalg.vector_norm(pull(x + here / torch.linalg.vector_norm(here)))
        loss = flat + weight * torch.linalg.vector_norm(x)
        if loss.item() <= threshold:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()


@torch.no_grad()
def perturb_noise(predict: Predict, x, e, empty, *, radius: float, step: float, repeats: int) -> torch.Tensor:
    """Han et al., batch-wise."""

    def pull(x):
        return predict(x, e) - predict(x, empty)

    for _ in range(repeats):
        here = pull(x)
        x = x - step * (pull(x + radius * here / torch.linalg.vector_norm(here)) - here)
    return x


def descend_noise(predict: Predict, x, e, empty, *, target: float, rate: float, iterations: int) -> torch.Tensor:
    """Han et al., per sample."""
    x = x.clone().requires_grad_()
    optimizer = torch.optim.AdamW([x], lr=rate, weight_decay=0.01)
    for _ in range(iterations):
        loss = torch.linalg.vector_norm(predict(x, e) - predict(x, empty))
        if loss.item() <= target:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()


def guide(conditional, unconditional, scale: float) -> torch.Tensor:
    return unconditional + scale * (conditional - unconditional)


def transition_static(pairs: Sequence, timesteps: Sequence[float], *, before: float, until: float, scale: float):
    """Guided predictions of each step, from (conditional, unconditional) at each."""
    return [guide(c, u, before if t > until else scale) for (c, u), t in zip(pairs, timesteps, strict=True)]


def transition_dynamic(pairs: Sequence, *, before: float, scale: float):
    """Guidance from the first step after which the norm's first minimum lies."""
    norms, found, out = [], False, []
    for c, u in pairs:
        norms.append(torch.linalg.vector_norm(c - u).item())
        found = found or (len(norms) > 2 and norms[-3] > norms[-2] < norms[-1])
        out.append(guide(c, u, scale if found else before))
    return out


def first_minimum(curve: Sequence[float], fallback: int) -> int:
    """The first place from 2 on that lies below both neighbours."""
    return next((i for i in range(2, len(curve) - 1) if curve[i - 1] > curve[i] < curve[i + 1]), fallback)


def attenuate_spikes(logits: torch.Tensor, *, threshold: float, strength: float) -> torch.Tensor:
    """GUARD's edit of logits [heads, pixels, tokens]."""
    peak = logits.amax(1)
    z = (peak - peak[:, 1:].mean(-1, keepdim=True)) / (peak[:, 1:].std(-1, keepdim=True) + 1e-6)
    spike = z > threshold
    spike[:, 0] = False
    return torch.where(spike[:, None], logits * strength, logits)


def guard(attenuated, plain, unconditional, *, scale: float, repulsion: float, progress: float) -> torch.Tensor:
    """GUARD's combination."""
    fading = repulsion * math.cos(math.pi * progress / 2)
    return unconditional + scale * (attenuated - unconditional) - fading * (plain - unconditional)


def prss(original, modified, unconditional, triggered: bool, *, scale: float, limit: float, margin: float):
    """PRSS's combination."""
    magnitude = torch.linalg.vector_norm(modified - unconditional).item()
    if not triggered or magnitude <= limit:
        return guide(modified, unconditional, scale)
    knee = (scale * limit - margin) / (scale - 1)
    s = min((magnitude - knee) / (margin - knee) * scale, scale)
    return original + s * (modified - original) + (scale - s) * (modified - unconditional)


def zero_tokens(e: torch.Tensor, variant: str, length: int, share: float = 0.7) -> torch.Tensor:
    """Kim & No's b (after the other padding) and c, of one embedding [tokens, channels]."""
    e, end = e.clone(), length - 1
    if variant == "b":
        e[end] = 0
    if variant == "c":
        e[end + 1 : end + 1 + int(share * (len(e) - (end + 1)))] = 0
    return e


def mild(x, output, mean: float, deviation: float, *, of_latents: float, of_output: float, width: float):
    """Broken Memories: the output whose clean image has the mean's norm, where its own is outside the region."""
    clean = of_latents * x + of_output * output
    length = torch.linalg.vector_norm(clean).item()
    if abs(length - mean) <= width * deviation:
        return output
    return (clean * mean / length - of_latents * x) / of_output


def clamp(x: torch.Tensor, mean: float, deviation: float, width: float) -> torch.Tensor:
    """A vector with its norm in the region."""
    length = torch.linalg.vector_norm(x).item()
    return x * min(max(length, mean - width * deviation), mean + width * deviation) / length
