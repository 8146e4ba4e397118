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


def structural_similarity(x: torch.Tensor, y: torch.Tensor, kernel: int, scales: int) -> float:
    """MS-SSIM of [channels, h, w], as torchmetrics has it with betas of 0.33."""
    offsets = torch.arange(kernel) - kernel // 2
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum())[:, None] * (window / window.sum())
    factors = []
    for scale in range(scales):
        means = [conv(image, window) for image in (x, y, x * x, y * y, x * y)]
        mx, my, xx, yy, xy = means
        structure = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
        luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        last_one = scale == scales - 1
        factors.append((luminance * structure if last_one else structure).mean().clamp(min=0) ** 0.33)
        x, y = (torch.nn.functional.avg_pool2d(image, 2) for image in (x, y))
    return float(torch.stack(factors).prod())


def conv(image: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv2d(image[:, None], window[None, None])[:, 0]


class Nemo:
    """Hintersdorf et al.'s search for one prompt's neurons: {layer: set of channels}, by hooks on `to_v`."""

    def __init__(self, unet, time: float, e: torch.Tensor, noises: torch.Tensor, clean: Sequence, *, limit, kernel):
        self.unet, self.time, self.e, self.noises, self.limit, self.kernel = unet, time, e, noises, limit, kernel
        self.layers = {
            name: module
            for name, module in unet.named_modules()
            if name.endswith("attn2.to_v") and not name.startswith("up_blocks")
        }
        seen = {name: torch.cat([self.active(layer, text) for text in clean]) for name, layer in self.layers.items()}
        own = {name: self.active(layer, e)[0] for name, layer in self.layers.items()}
        self.z = {name: (own[name] - s.mean(0)).abs() / s.std(0) for name, s in seen.items()}
        self.own = own

    def active(self, layer, e: torch.Tensor) -> torch.Tensor:
        return layer(e).abs().mean(1).detach()

    @torch.no_grad()
    def differences(self, blocked: dict[str, set[int]]) -> list[torch.Tensor]:
        def zero(channels):
            def hook(module, inputs, output):
                output = output.clone()
                output[..., sorted(channels)] = 0
                return output

            return hook

        hooks = [self.layers[name].register_forward_hook(zero(channels)) for name, channels in blocked.items()]
        out = []
        for x in self.noises:
            difference = self.unet(x[None], self.time, self.e).sample[0] - x
            low, high = difference.amin((1, 2), keepdim=True), difference.amax((1, 2), keepdim=True)
            out.append((difference - low) / (high - low))
        for hook in hooks:
            hook.remove()
        return out

    def alike(self, x, y) -> float:
        return structural_similarity(x, y, self.kernel, 1)

    def agreement(self, blocked) -> float:
        pairs = list(zip(self.plain, self.differences(blocked), strict=True))
        return max(self.alike(*pairs[i]) for i in self.look)

    def search(self) -> dict[str, set[int]]:
        nobody: dict[str, set[int]] = {name: set() for name in self.layers}
        self.plain = self.differences(nobody)
        numbers = range(len(self.noises))
        self.look = [
            i for i in numbers if max(self.alike(self.plain[i], self.plain[j]) for j in numbers if j != i) > self.limit
        ]
        if not self.look:
            return nobody
        theta, k = 5.0, 0
        while True:
            blocked = {
                name: set((z > theta).nonzero().flatten().tolist())
                | set(self.own[name].topk(min(k, len(z))).indices.tolist())
                for name, z in self.z.items()
            }
            agreed = self.agreement(blocked)
            if agreed <= self.limit or theta <= 1:
                break
            theta, k = theta - 0.25, k + 1
        bound = max(self.limit, agreed)
        for name in reversed(list(self.layers)):
            if self.agreement(blocked | {name: set()}) < bound:
                blocked[name] = set()
        for name in reversed(list(self.layers)):
            for channel in sorted(blocked[name]):
                if self.agreement(blocked | {name: blocked[name] - {channel}}) < bound:
                    blocked[name] = blocked[name] - {channel}
        return blocked


@torch.no_grad()
def run_ddim(unet, scheduler, noise, e, empty, *, scale: float, steps: int) -> None:
    """A guided run of one row, for what hooks see of it."""
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        u, c = unet(torch.cat([x, x]), t, torch.cat([empty, e])).sample.chunk(2)
        x = scheduler.step(guide(c, u, scale), t, x).prev_sample


def weights_to_prune(unet, scheduler, rows, *, share: float, calls: int, scale: float, steps: int):
    """Chavhan et al.: {layer: bool [out, in]}, of rows (noise, embedding, empty embedding)."""
    layers = {name: module for name, module in unet.named_modules() if name.endswith("ff.net.2")}
    squares = [{name: [] for name in layers} for _ in range(2)]  # memorized, empty: [rows · steps] of [in]
    for kept, texts in zip(squares, ("own", "empty"), strict=True):
        hooks = [
            layer.register_forward_hook(lambda m, x, y, own=kept[name]: own.append((x[0][1] ** 2).sum(0)))
            for name, layer in layers.items()
        ]
        for noise, e, empty in rows:
            run_ddim(unet, scheduler, noise, e if texts == "own" else empty, empty, scale=scale, steps=steps)
        for hook in hooks:
            hook.remove()
    pruned = {}
    for name, layer in layers.items():
        size = layer.weight.abs().detach()
        own, empty = (torch.stack(kept[name]).reshape(len(rows), steps, -1).sum(0).sqrt() for kept in squares)
        most = max(1, round(share * size.shape[1]))
        masks = []
        for t in range(calls):
            scores = size * own[t]
            top = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(most, 1).indices, True)
            masks.append(top & (scores > size * empty[t]))
        pruned[name] = torch.stack(masks).any(0)
    return pruned
