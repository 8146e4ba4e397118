"""Options and settings of fine-tuning that cannot be are named before anything is read."""

import re

import pytest

from memattn_jax import InputError
from memattn_jax.commands.finetune import Options, main
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
        ({"sample_every": 5}, "--sample-prompts"),
        ({"gate_reference": tmp_path}, "--gate-reference needs a gate"),
        ({"mesh": "dta=2"}, "--mesh dta=2: unknown axis 'dta'"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            main(Options(data=tmp_path, **changes))
