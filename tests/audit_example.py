"""A small finished audit of made-up numbers and random pictures, with prompts that a report must show escaped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROMPTS = (
    "a penguin for elkrin jasdan",
    '<script>alert("x")</script> <b>bold</b> & "quoted"',
    "emoji 🐧👩‍🚀 and combining é̂",
    "مرحبا بالعالم, right to left \u202egnirts\u202c",
    "long " * 2000,
    "a NUL \0 inside, and \x1b[31mcontrol\x07 characters",
    "",
    "a strawberry for zanfir solmok",
)
KINDS = ("verbatim", "template", "clean")
SEEDS = (0, 1, 2, 3)
MEASURES = ("correlation", "1 - tiled l2")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_picture(path: Path, rng: np.random.Generator, size: int = 64) -> None:
    path.parent.mkdir(exist_ok=True)
    coarse = rng.integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR).save(path)


def item(folder: Path, row: int, rng: np.random.Generator, pictures: bool) -> dict[str, Any]:
    """A line of items.jsonl; its pictures are written where `pictures` is set, else those of row 0 to 7 are named."""
    shown = row if pictures else row % len(PROMPTS)
    copied, flagged = row % 4 == 0, row % 2 == 0
    tokens = ["<begin>", *PROMPTS[row % len(PROMPTS)].split()[:8], "<end>", "<padding ×67>"]
    attention = rng.dirichlet(np.ones(len(tokens))).tolist()
    reference = f"references/{hashlib.sha256(str(shown % 3).encode()).hexdigest()[:32]}.png"
    missing = row % len(PROMPTS) == 6

    def image(kind: str, seed: int, similar: float) -> dict[str, Any]:
        name = f"{kind}/{shown:06d}-{seed}.png"
        if pictures and not missing:
            write_picture(folder / name, rng)
        entry = {"seed": seed, "file": None if missing else name, "finite": not missing, "copy": similar >= 0.9}
        return entry | {"similarity": {} if missing else dict.fromkeys(MEASURES, similar)}

    images = [image("images", seed, 0.95 if copied else float(rng.uniform(0.1, 0.6))) for seed in SEEDS]
    mitigated = [image("mitigated", seed, float(rng.uniform(0.1, 0.95))) for seed in SEEDS] if flagged else []
    maps = [2, 1] if flagged and not missing else []
    if pictures:
        write_picture(folder / reference, rng)
        for token in maps:
            write_picture(folder / f"heatmaps/{shown:06d}-{token:02d}.png", rng)
    own = {"measure": "correlation", "mean": 0.93 if copied else 0.3, "highest": 0.97 if copied else 0.5}
    agreement = None if missing else own | {"alike": 4 if copied else 1, "threshold": 0.9}
    return {
        "row": row,
        "prompt": PROMPTS[row % len(PROMPTS)],
        "kind": KINDS[row % 3],
        "stratum": "flagged" if flagged else "not flagged",
        "flagged": flagged,
        "verdict": "memorized" if flagged else "clean",
        "p": 0.003 if flagged else float(rng.uniform(0.1, 1)),
        "scores": {"entropy_e": float(rng.uniform(1, 4)), "noise_norm": None if missing else float(rng.uniform(0, 9))},
        "over": ["entropy_e"] if flagged else [],
        "memorized": None if missing else copied,
        "extracted": None if missing else copied,
        "tokens": tokens,
        "attention": attention,
        "attention_excess": [10 * value for value in attention],
        "blamed": tokens[1:2] if flagged else [],
        "images": [one | {"nearest": reference, "nearest_source": f"training/{shown % 3}.png"} for one in images],
        "agreement": agreement,
        "mitigated": mitigated,
        "mitigated_agreement": agreement if flagged else None,
        "heatmaps": [{"token": token, "file": f"heatmaps/{shown:06d}-{token:02d}.png"} for token in maps],
        "copy_mask": None,
        "error": "latents or image contain NaN or infinity; no image was written" if missing else None,
    }


def rate(what: str, of: str, kind: str | None, count: float, samples: int, **more: Any) -> dict[str, Any]:
    share = count / samples
    method = "stratified, Clopper–Pearson with Bonferroni" if of == "log" else "Clopper–Pearson"
    entry = {"what": what, "of": of, "kind": kind, "count": count, "samples": samples, "rate": share}
    entry |= {"low": max(0, share - 0.1), "high": min(1, share + 0.1), "confidence": 0.95, "method": method}
    return entry | {"headline": False, "needed": None} | more


def write_audit(folder: Path, rows: int = 8, *, refused: bool = False) -> dict[str, Any]:
    """Writes audit.json, its digest, items.jsonl and pictures, and returns the first.

    Args:
      folder: made if there is none.
      rows: lines of items.jsonl; those after the eighth share the pictures of the first eight.
      refused: whether there is no headline, for lack of prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    items = [item(folder, row, rng, row < len(PROMPTS)) for row in range(rows)]
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in items)
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")
    flagged = sum(one["flagged"] for one in items)
    digests = {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*.png"))}
    needed = 96 if refused else None
    whats = ("memorized", "extracted", "regurgitated")
    rates = [rate(what, "log", None, rows / 4, rows, headline=not refused, needed=needed) for what in whats]
    rates += [rate(what, of, None, rows / 8, rows // 2) for what in whats for of in ("flagged", "not flagged")]
    rates += [rate("memorized", "log", kind, 1, max(1, rows // 3)) for kind in KINDS]
    prompts = {"source": "log.csv", "sha256": "1" * 64, "hashed": "file", "prompts": 4 * rows, "unreadable": 1}
    prompts |= {"kind_column": "kind", "provenance": "captions of the training set", "licence": "CC0-1.0"}
    clean = prompts | {"source": "clean.txt", "sha256": "2" * 64, "prompts": 400, "unreadable": 0, "kind_column": None}
    strata = [
        {"stratum": name, "kind": kind, "prompts": 4 * count, "sampled": count}
        for name, count in (("flagged", flagged), ("not flagged", rows - flagged))
        for kind in (None, *KINDS)
    ]
    measures = [
        {"name": name, "preset": "64 × 64", "threshold": 0.9, "against": against, "decides": name == "correlation"}
        for name in MEASURES
        for against in ("training pictures", "seeds")
    ]
    said = f"25.0 % of this log's prompts are memorized (95 % interval 15.0 % to 35.0 %; {rows} prompts, 4 seeds each)."
    too_few = f"no headline: {rows} prompts were sampled, and {needed} are needed for an interval of 10 points"
    audit: dict[str, Any] = {
        "schema": "memattn-audit/1",
        "times": {
            "started": "2026-11-26T20:00:00Z",
            "finished": "2026-11-26T20:04:10Z",
            "seconds": {"detection": 12.5, "confirmation": 200.1, "image_plain": 0.4, "image_mitigated": 0.5},
        },
        "versions": {"memattn_jax": "0.2.0", "jax": "0.10.2"},
        "profile": "standard",
        "model": {
            "name": "a made-up model",
            "source": {"model": "model"},
            "fingerprint": "0" * 32,
            "files": [{"path": "unet/diffusion_pytorch_model.safetensors", "bytes": 10_000_000, "sha256": "3" * 64}],
            "dtype": "float32",
            "lora": [],
            "embeddings": [],
        },
        "settings": {
            "steps": 50,
            "guidance_scale": 7.5,
            "scheduler": "ddim",
            "seeds": list(SEEDS),
            "batch_size": 8,
            "device": "cpu",
            "devices": 1,
        },
        "prompts": {"log": prompts, "clean": clean},
        "training_pictures": {"source": "training", "pictures": 48, "unreadable": 0, "sha256": "4" * 64},
        "detection": {
            "detectors": {
                name: {"threshold": value, "larger_is_memorized": True}
                for name, value in (("entropy_e", 3.1), ("noise_norm", None))
            },
            "control": {"of": "fdr", "rate": 0.05},
            "calibration": {"prompts": 400, "sha256": "5" * 64, "source": "detection/calibration.json"},
            "scored": 4 * rows,
            "flagged": 4 * flagged,
            "not_flagged": 4 * (rows - flagged),
            "unknown": 0,
            "unscored": 1,
        },
        "confirmation": {
            "measures": measures,
            "seeds": len(SEEDS),
            "flagged_sampled": flagged,
            "unflagged_sampled": rows - flagged,
            "unknown_sampled": 0,
            "strata": strata,
            "drawn_with_seed": 0,
        },
        "rates": rates,
        "mitigation": {
            "name": "attention_mask",
            "settings": {"mask": "summary", "begin_scale": 1.25},
            "rates": [rate(what, "mitigated", None, 1, max(1, flagged)) for what in whats],
            "change": [
                {"of": "not flagged", "measure": "1 - correlation with the plain image", "mean": 0.4, "images": 4}
            ],
        },
        "adversarial": None,
        "truth": None,
        "verdict": {
            "sentence": too_few if refused else said,
            "sure": "Exact intervals; prompts are the trials.",
            "refused": too_few if refused else None,
        },
        "limits": [
            "Rates hold for prompts like those of the log.",
            "Copies that are cropped or mirrored are not found.",
        ],
        "model_card": "## Memorization\n\n25.0 % of …\n",
        "files": {"items.jsonl": digest(folder / "items.jsonl"), **digests},
    }
    text = json.dumps(audit, indent=1, ensure_ascii=False) + "\n"
    (folder / "audit.json").write_text(text, encoding="utf-8")
    (folder / "audit.json.sha256").write_text(f"{digest(folder / 'audit.json')}  audit.json\n")
    return audit
