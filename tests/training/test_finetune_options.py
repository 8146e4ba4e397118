"""Options and settings of fine-tuning that cannot be are named before anything is read."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from memattn_jax import InputError
from memattn_jax.commands import options
from memattn_jax.commands.finetune import Options, draw_samples, main
from memattn_jax.training import start
from memattn_jax.training.settings import TrainSettings

WRONG = {
    "gate": ({"gate": "hope"}, "--gate: unknown gate 'hope'; expected one of none, entropy, noise_norm, loss, random"),
    "schedule": ({"schedule": "cosin"}, "--schedule: unknown schedule 'cosin'; did you mean 'cosine'?"),
    "dtype": ({"dtype": "float16"}, "--dtype: unknown dtype 'float16'; did you mean 'bfloat16'?"),
    "accumulation": ({"accumulation": 3}, "--batch-size 8 is not a multiple of --accumulation 3"),
    "quantile": ({"gate_quantile": 1.5}, "--gate-quantile 1.5: "),
    "steps": ({"steps": 0}, "--steps 0: "),
    "learning rate": ({"learning_rate": float("nan")}, "--learning-rate nan: "),
    "weight decay": ({"weight_decay": -1.0}, "--weight-decay -1.0: "),
    "average": ({"ema_decay": 1.0}, "--ema-decay 1.0: "),
    "seed": ({"seed": 2**32}, "--seed 4294967296: "),
    "warm-up": ({"warmup_steps": -1}, "--warmup-steps -1: "),
    "sites": ({"gate_sites": "up_blocks"}, "--gate-sites has no effect without --gate entropy"),
    "height": ({"height": 9}, "--height 9: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_are_checked_before_anything_is_read(tmp_path, case):
    changes, message = WRONG[case]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        main(Options(data=tmp_path, settings=TrainSettings(**changes)))
    assert len(str(caught.value)) <= 200


def test_options_are_checked_before_anything_is_read(tmp_path):
    for changes, message in (
        ({"checkpoint_every": 0}, "--checkpoint-every 0: "),
        ({"sample_every": -1}, "--sample-every -1: "),
        ({"sample_every": 5}, "--sample-every N needs --sample-prompts"),
        ({"sample_prompts": ("a cat",)}, "--sample-prompts needs --sample-every N"),
        ({"sample_every": 5, "sample_prompts": ("a", "caf\udce9")}, "--sample-prompts: the text is not valid UTF-8"),
        ({"gate_reference": tmp_path}, "--gate-reference needs a gate"),
        ({"out": Path("gs://bucket/run")}, "--out gs:/bucket/run: expected a place on this machine"),
        ({"mesh": "dta=2"}, "--mesh dta=2: unknown axis 'dta'"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            main(Options(data=tmp_path, **changes))


def test_what_the_extra_brings_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "grain" else name)
    with pytest.raises(InputError, match=r"grain is not installed: pip install \"memattn-jax\[train\]\""):
        main(Options(data=tmp_path))


def test_a_model_that_cannot_be_trained_is_refused_before_data_are_read(sd, tmp_path, monkeypatch):
    """Nor is anything written; the folder of the data has none."""
    model = dataclasses.replace(sd, scheduler_config={**sd.scheduler_config, "prediction_type": "sample"})
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", lambda *_, **__: model)
    with pytest.raises(InputError, match="no training objective for prediction_type 'sample'"):
        main(Options(data=tmp_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_samples_have_the_size_of_the_training_pictures(tmp_path, monkeypatch):
    """Which a model whose config names none does not know."""

    class Model:
        def sample(self, prompts, *, seeds, taps, height, width):
            return SimpleNamespace(images=np.zeros((len(prompts), height, width, 3), np.uint8))

    monkeypatch.setattr(start, "trained", lambda *_: Model())
    settings = TrainSettings(height=16, width=8)
    options = Options(data=tmp_path, out=tmp_path, sample_prompts=("a", "b"), settings=settings)
    draw_samples(None, SimpleNamespace(step=3), None, options)
    with Image.open(tmp_path / "samples" / "000003.png") as grid:
        assert grid.size == (4 * 8, 2 * 16)
