"""Fields of mitigations: what the command line and Python may set, and files and runs that they learn from."""

import codecs
import dataclasses
import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax import InputError
from memattn_jax.commands import evaluate, generate
from memattn_jax.commands.evaluating_mitigations import evaluate_mitigations, make_all
from memattn_jax.commands.mitigating import make_mitigation
from memattn_jax.mitigations import AttentionMask, compose, pruned_weights
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.mitigations.noise_optimization import NoiseOptimization
from memattn_jax.mitigations.paraphrase_guidance import ParaphraseGuidance
from memattn_jax.mitigations.prompt_files import read_texts
from memattn_jax.mitigations.pruned_weights import PrunedWeights
from memattn_jax.mitigations.stability_clamp import StabilityClamp
from memattn_jax.mitigations.value_neurons import ValueNeurons

BOTH = ("the café", "a hill")
SITES = ("up_blocks.1.attentions.0.transformer_blocks.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("attention_mask", "mask_unconditional=no", "mask_unconditional=no: must be true or false"),
        ("attention_mask", "begin_scale=true", "begin_scale=true: must be a finite number"),
        ("random_tokens", "count=-1", r"count=-1: must be a whole number in \[0, "),
        ("random_tokens", "count=4294967297", "count=4294967297: must be a whole number"),
        ("value_neurons", "noises=4.0", "noises=4.0: must be a whole number"),
        ("value_neurons", "noises=1", "noises is 1; must be a whole number, at least 2"),
        ("pruned_weights", "calls=0", "calls is 0; .* at least 1"),
        ("pruned_weights", "share=2", "share is 2.0; must be between 0 and 1"),
        ("pruned_weights", "pruned=none", "unknown option of pruned_weights 'pruned'"),
        ("stability_clamp", "batch=0", "batch is 0; .* at least 1"),
        ("stability_clamp", "clean=-", "expected a prompt file, not '-'"),
        ("clip_embedding", "share=-1", "share is -1.0; must be between 0 and 1"),
    ],
)
def test_values_of_another_kind_are_refused(name, option, message):
    with pytest.raises(InputError, match=f"^--mitigation-options:? {message}"):
        make_mitigation(name, (option,))


@pytest.mark.parametrize(("name", "option"), [("stability_clamp", "clean=2024"), ("pruned_weights", "memorized=none")])
def test_a_text_that_looks_like_a_number_names_a_file(name, option):
    with pytest.raises(FileNotFoundError, match=option.partition("=")[2]):
        make_mitigation(name, (option,))


def test_values_are_of_their_fields_kinds():
    options = ("mask=none", "mask_unconditional=False", "begin_scale=2", f"sites={'+'.join(SITES)}")
    assert make_mitigation("attention_mask", options) == AttentionMask(2.0, None, False, SITES)
    assert make_mitigation("attention_mask", (f"sites={SITES[0]}",)).sites == SITES[:1]
    assert make_mitigation("attention_mask", ("sites=none",)).sites is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (PrunedWeights, {"batch": -1}),
        (PrunedWeights, {"share": float("nan")}),
        (StabilityClamp, {"batch": 0}),
        (ValueNeurons, {"noises": 2.5}),
    ],
)
def test_numbers_out_of_range_are_refused_in_python(kind, fields):
    with pytest.raises(InputError, match="must be"):
        kind(("a", "b"), **fields)


def test_prompts_are_read_as_in_every_prompt_file(tmp_path):
    lines = "\n".join(BOTH)
    files = {
        "marked.txt": codecs.BOM_UTF8 + lines.encode(),
        "wide.txt": lines.encode("utf-16"),
        "table.csv": f"id,prompt\n1,{BOTH[0]}\n2,{BOTH[1]}\n".encode(),
        "objects.jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in BOTH).encode(),
        "packed.txt.gz": gzip.compress(lines.encode()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"prompt": list(BOTH)}), tmp_path / "a.parquet")
    for name in (*files, "a.parquet"):
        assert read_texts(tmp_path / name) == BOTH, name
    (tmp_path / "latin.txt").write_bytes(lines.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt: line 1 is not UTF-8"):
        StabilityClamp(tmp_path / "latin.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_paraphrases_are_read_in_every_encoding_of_json(tmp_path, encoding):
    path, table = tmp_path / "a.json", {BOTH[0]: [BOTH[1]]}
    path.write_text(json.dumps(table, ensure_ascii=False), encoding=encoding)
    assert ParaphraseGuidance(path).paraphrases == table


@pytest.mark.parametrize("content", [b"\xff\xfe\xfd", b"[" * 100_000, b"{}"])
def test_paraphrases_that_cannot_be_read_are_named_in_a_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="JSON"):
        ParaphraseGuidance(tmp_path / "a.json")


@pytest.mark.parametrize("table", [{}, {"a prompt": "another wording"}, {"a prompt": [1]}, ["another wording"]])
def test_paraphrases_of_another_form_are_refused_in_python(table):
    with pytest.raises(InputError, match="paraphrases: expected a mapping such as"):
        ParaphraseGuidance(table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pruned_weights", None, "memorized=FILE"),
        ("stability_clamp", "a\n", "clean=FILE has 1"),
        ("value_neurons", "\n", "has no prompts"),
        ("value_neurons", "a\n", "clean=FILE has 1"),
    ],
)
def test_too_few_prompts_to_learn_from_are_refused_before_a_model_is_loaded(
    name, content, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", None)
    path = tmp_path / "few.txt"
    path.write_text(content or "")
    given = () if content is None else (f"clean={path}",)
    options = {"model": str(tmp_path), "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=message):
        generate.main(generate.Options(prompt=("a",), mitigation=name, mitigation_options=given, **options))
    assert not (tmp_path / "out").exists()


def test_too_few_prompts_of_an_evaluation_are_refused_before_a_model_is_loaded():
    options = evaluate.Options(mitigations="value_neurons", memorized="a", clean="b")
    with pytest.raises(InputError, match="clean=FILE has 1"):
        make_all(options, ["a"], ["b"])


def test_composed_mitigations_are_checked():
    with pytest.raises(InputError, match="memorized=FILE"):
        compose(AttentionMask(), PrunedWeights()).check()


def test_a_model_without_a_size_is_refused(tmp_path, monkeypatch):
    model = SimpleNamespace(latent_shape=lambda: (None, None, 4))
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", lambda *_, **__: model)
    options = evaluate.Options(out=tmp_path, mitigations="attention_mask", memorized="a", clean="b")
    with pytest.raises(InputError, match="no sample_size, which evaluate needs"):
        evaluate_mitigations(options, ["a"], ["b"])


def test_a_layer_that_the_model_lacks_is_refused_before_anything_is_measured(sd, tmp_path, monkeypatch):
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", lambda *_, **__: sd)
    monkeypatch.setattr("memattn_jax.commands.mitigation_study.measure", None)
    chosen = "embedding_noise,attention_mask:sites=down_blocks.9.attn2"
    options = evaluate.Options(out=tmp_path, mitigations=chosen, memorized="a", clean="b")
    with pytest.raises(InputError, match=r"unknown cross-attention layer of attention_mask 'down_blocks\.9\.attn2'"):
        evaluate_mitigations(options, ["a"], ["b"])


def spoilt(part):
    return jax.tree.map(lambda weight: weight * jnp.nan, part)


def test_runs_that_are_not_finite_are_not_learned_from(sd, matrices, monkeypatch):
    with pytest.raises(InputError, match="stability_clamp: a run of the clean prompts is not finite; load"):
        StabilityClamp(("a", "b")).fit(dataclasses.replace(matrices, unet=spoilt(matrices.unet)), steps=3)
    with pytest.raises(InputError, match="value_neurons: an embedding of the clean prompts is not finite"):
        ValueNeurons(("a", "b")).fit(dataclasses.replace(sd, text_encoder=spoilt(sd.text_encoder)))
    squares = {"a": np.ones((2, 1, 4)), "": np.ones((2, 1, 4))}
    monkeypatch.setattr(pruned_weights, "observe_run", lambda model, texts, *_: {"layer": squares[texts[0]]})
    for prompt, named in (("", "empty prompt"), ("a", "memorized prompts")):
        squares[prompt][1] = np.inf
        with pytest.raises(InputError, match=f"pruned_weights: a run of the {named} is not finite"):
            PrunedWeights(("a",)).fit(sd, steps=3)


def test_embeddings_may_be_given_to_a_mitigation_of_embeddings(matrices):
    """Variant c changes no token; it zeroes embeddings of the padding, of those that are given too."""
    embeddings = matrices.encode(["a"])[0]
    run = {"steps": 2, "taps": None, "mitigation": ClipEmbedding("c")}
    expected = matrices.sample(["a"], **run).latents
    given = matrices.sample(["a"], embeddings=embeddings, **run).latents
    np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(InputError, match="reads prompts"):
        matrices.sample(["a"], embeddings=embeddings, steps=2, mitigation=ClipEmbedding("a"))


def test_a_share_of_nothing_prunes_nothing():
    ones = np.ones((3, 2), np.float32)
    assert not pruned_weights.used_weights(ones, ones[:, :2].T * 4, ones[:, :2].T, 0.0).any()
    assert pruned_weights.used_weights(ones, ones[:, :2].T * 4, ones[:, :2].T, 0.4).any()


def test_a_padding_token_that_the_model_lacks_is_refused(matrices):
    with pytest.raises(InputError, match="pad is 4940800; this model's tokens are 0 to"):
        matrices.sample(["a hill"], steps=3, mitigation=ClipEmbedding("a", pad=4940800))


def test_the_empty_prompt_keeps_its_noise_finite(matrices):
    """Its prediction equals the unconditional one, where a norm has no derivative."""
    run = matrices.sample([""], steps=3, mitigation=NoiseOptimization(threshold=0.0))
    assert np.isfinite(run.latents).all()


def test_a_mitigation_learns_from_runs_with_the_negative_prompt():
    seen = {}
    options = generate.Options(prompt=("a",), negative_prompt="ugly", mitigation="attention_mask")
    made = SimpleNamespace(fit=lambda model, **settings: seen.update(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "mitigation", lambda options: made)
        generate.fitted(options, None)
    assert seen["negative_prompts"] == "ugly"
