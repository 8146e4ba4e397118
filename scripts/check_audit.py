"""Holds `memattn audit` of the built-in model against the truth, and kills it at random moments.

    python scripts/check_audit.py truth out/audit      # a finished audit against other seeds of all its prompts
    python scripts/check_audit.py kills out/killed     # the same audit.json after ten kills as after none

The first prints each rate's interval beside the rate that all prompts of the log have with as many other seeds, and
ends with status 1 where more of them are missed than 5 %. The second audits with few steps, once undisturbed and once
killed at random moments (SIGKILL) and started again; further options are the audit's, such as those of another model.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memattn_jax import StableDiffusion, demo
from memattn_jax.audit.evidence import agreements, is_memorized, nearest
from memattn_jax.audit.folder import evidence
from memattn_jax.audit.rates import STRATA, share_of
from memattn_jax.audit.sampling import Camera, Shot, sample_shots
from memattn_jax.audit.strata import OF_VERDICT
from memattn_jax.commands.auditing import built_in_log
from memattn_jax.copies.search import Search
from memattn_jax.pictures.files import image_files
from memattn_jax.storage import Store

FAR = 100_000  # from the audit's seeds to those of the census
KILLS = 10
QUICK = ("--steps", "2", "--images-per-prompt", "2", "--sampled-prompts", "42")


def census(out: Path, folder: Path) -> list[dict[str, Any]]:
    """All prompts of the log, each sampled with other seeds than the audit's and judged as it judges them."""
    audit = json.loads((out / "audit.json").read_text())
    settings, log = audit["settings"], built_in_log()
    run = {name: settings[name] for name in ("steps", "guidance_scale", "scheduler")}
    sd = StableDiffusion.from_pretrained(demo.MODEL, audit["model"]["dtype"])
    camera = Camera(sd, run, settings["batch_size"], Store(folder / "images"), json.dumps(run))
    seeds = [FAR + seed for seed in settings["seeds"]]
    shots = [Shot(record.text, seed, row) for row, record in enumerate(log) for seed in seeds]
    identity = {"command": "census", "model": audit["model"]["fingerprint"], "run": run}
    rows, _ = sample_shots(camera, shots, Store(folder / "table"), identity, {})
    assert rows is not None
    search, images = Search(folder / "index"), (folder / "images").absolute()
    paths = [[images / row["file"] for row in rows if row["log_row"] == number] for number in range(len(log))]
    found, _ = nearest(search, [path for group in paths for path in group], image_files([demo.FOLDER / "memorized"]))
    agreed, _ = agreements(search, paths)
    verdicts = [json.loads(line)["verdict"] for line in (out / "detection/results.jsonl").read_text().splitlines()]
    items = []
    for record, group, agreement, verdict in zip(log, paths, agreed, verdicts, strict=True):
        copies = [found[path].copy for path in group]
        item = {"kind": record.kept[0], "stratum": OF_VERDICT[verdict], "extracted": any(copies)}
        item |= {"memorized": is_memorized(agreement, len(group), any(copies))}
        items.append(item | {"images": [{"copy": copy} for copy in copies]})
    return items


def check_truth(out: Path) -> int:
    """Compares, prints a line for each rate, and returns the exit status."""
    items = census(out, out.with_name(f"{out.name}-census"))
    audit = json.loads((out / "audit.json").read_text())
    missed = 0
    for rate in audit["rates"]:
        strata = STRATA if rate["of"] == "log" else (rate["of"],)
        own = [one for one in items if one["stratum"] in strata and rate["kind"] in (None, one["kind"])]
        share = share_of(own, rate["what"], len(own))
        truth = share.count / share.samples
        within = rate["low"] <= truth <= rate["high"]
        missed += not within
        name = f"{rate['what']}, {rate['of']}, {rate['kind'] or 'all kinds'}"
        print(f"{name:45} {rate['low']:.3f} to {rate['high']:.3f}  truth {truth:.3f}  {'' if within else 'missed'}")
    print(f"{missed} of {len(audit['rates'])} intervals miss the truth")
    return int(missed > 0.05 * len(audit["rates"]))


def audit_into(out: Path, seconds: float | None) -> bool:
    """Runs the audit, killed after some seconds; returns whether it came to its end."""
    command = [sys.executable, "-m", "memattn_jax.audit", *QUICK, *sys.argv[3:], "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def check_kills(out: Path) -> int:
    """Compares an audit that was killed with one that was not; returns the exit status."""
    whole, killed, chance = out / "whole", out / "killed", random.Random()
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    assert audit_into(whole, None)
    longest, kills = 0.0, 0
    while kills < KILLS:
        after = None if longest == 0 else chance.uniform(0.2, 0.9) * longest
        start = time.monotonic()
        if audit_into(killed, after):  # quicker than the last one: begin again
            longest = time.monotonic() - start
            print(f"an audit took {longest:.0f} s", flush=True)
            shutil.rmtree(killed)
        else:
            kills += 1
            there = sorted(path.name for path in killed.iterdir()) if killed.is_dir() else []
            print(f"{kills}: killed after {after:.1f} s; {', '.join(there)}", flush=True)
    assert audit_into(killed, None)
    first, second = (json.loads((folder / "audit.json").read_text()) | {"times": None} for folder in (whole, killed))
    same = first == second and evidence(whole) == evidence(killed)
    print("the same audit.json and files" if same else "another audit.json or other files")
    return int(not same)


if __name__ == "__main__":
    sys.exit({"truth": check_truth, "kills": check_kills}[sys.argv[1]](Path(sys.argv[2])))
