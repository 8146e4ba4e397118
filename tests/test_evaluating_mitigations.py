"""`memattn evaluate --mitigations`: the command, its options and what it resumes."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from PIL import Image

from memattn_jax import InputError, demo
from memattn_jax.commands import evaluate
from memattn_jax.commands.evaluating_mitigations import evaluate_mitigations, make_all, read_kinds
from memattn_jax.commands.mitigating import describe as describe_fields
from memattn_jax.commands.naming import named_mitigations
from memattn_jax.demo.objects import Classifier, ObjectsFound, save_classifier
from memattn_jax.diffusion.run import sample
from memattn_jax.evaluation import adversarial
from memattn_jax.evaluation.adversarial import Attack, optimise_embeddings, retriggered
from memattn_jax.evaluation.mitigated import sample_prompts
from memattn_jax.mitigations import Mitigation
from memattn_jax.registries import MITIGATIONS
from memattn_jax.runs.parts import Part, Parts
from memattn_jax.storage import Store

MEMORIZED, CLEAN = ["the cat", "a hill"], ["the land", "Z"]
STEPS = 3


@pytest.mark.slow
def test_the_classifier_is_kept_in_a_file(tmp_path):
    words = [f"w{i}" for i in range(12)]
    model = Classifier(len(words), rngs=nnx.Rngs(0))
    save_classifier(tmp_path / "objects.safetensors", model, words)
    found = ObjectsFound(tmp_path / "objects.safetensors")
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    ours, theirs = (np.asarray(each(images)) for each in (found.model, model))
    np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max())
    likeliest = np.argsort(-ours, axis=1)
    first, last = (words[likeliest[i, place]] for i, place in ((0, 0), (1, -1)))
    assert found(images, [f"a {first} here", f"the {last} there"]).tolist() == [1, 0]  # the likeliest, the least likely
    assert np.isnan(found(images, ["nothing", "xw1"])).all()


def test_names_and_fields():
    assert [named.name for named in named_mitigations("attention_mask:mask=summary,clip_embedding")] == [
        "attention_mask",
        "clip_embedding",
    ]
    assert named_mitigations("attention_mask:mask=summary:begin_scale=1")[0].options == (
        "mask=summary",
        "begin_scale=1",
    )
    for text, named in (("hope", "hope"), ("attention_mask,attention_mask", "twice"), ("attention_mask,all", "all")):
        with pytest.raises(InputError, match=named):
            named_mitigations(text)


def test_all_of_them_without_prompts():
    """All of them on the built-in prompts, elsewhere but the one that needs a file; what they are made with is kept."""
    memorized, clean = demo.prompts("memorized", "report"), demo.clean_prompts()
    made = make_all(evaluate.Options(mitigations="all"), memorized, clean)
    assert {name.partition(":")[0] for name in made} == MITIGATIONS.keys()
    with pytest.warns(UserWarning, match="left out paraphrase_guidance"):
        others = make_all(evaluate.Options(mitigations="all", memorized="a", clean="b"), memorized, clean)
    assert {name.partition(":")[0] for name in others} == MITIGATIONS.keys() - {"paraphrase_guidance"}
    fields = {name: describe_fields(mitigation) for name, mitigation in made.items()}
    assert json.loads(json.dumps(fields)) == fields


@pytest.mark.slow
def test_the_command(model, tmp_path, monkeypatch):
    """Tables, Parquet and a picture, with counted forward passes: a third one a step. The attack has a test beside."""
    attacked, sampled_with, searched, found = [], [], [], np.ones((2, 1, 4, 3))

    def find(sd, prompts, images, mitigation, *arguments):
        searched.append((list(prompts), type(mitigation).__name__))
        return found

    def attack(sd, prompts, images, mitigation, *arguments):
        attacked.append((list(prompts), images.shape, type(mitigation).__name__))
        np.testing.assert_array_equal(arguments[2], found)
        assert arguments[3] == 4
        return {"retriggered": 0.5, "control": 0.0}

    def sample(sd, prompts, seeds, mitigation, *settings):
        sampled_with.append(type(mitigation).__name__)
        return sample_prompts(sd, prompts, seeds, mitigation, *settings)

    monkeypatch.setattr("memattn_jax.commands.mitigation_study.find_embeddings", find)
    monkeypatch.setattr("memattn_jax.commands.mitigation_study.retriggered", attack)
    monkeypatch.setattr("memattn_jax.commands.mitigation_study.sample_prompts", sample)
    texts, folder, rng = tmp_path / "memorized.csv", tmp_path / "pictures", np.random.default_rng(0)
    texts.write_text(
        "prompt,sort\n" + "".join(f"{prompt},{sort}\n" for prompt, sort in zip(MEMORIZED, "vt", strict=True))
    )
    (tmp_path / "clean.txt").write_text("\n".join(CLEAN))
    folder.mkdir()
    for i, prompt in enumerate(MEMORIZED):
        Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8)).save(folder / f"{i}.png")
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": f"{i}.png", "text": prompt}) + "\n")
    options = evaluate.Options(
        model=str(model),
        memorized=str(texts),
        clean=str(tmp_path / "clean.txt"),
        mitigations="guard_guidance:repulsion=1",
        pictures=folder,
        kind="sort",
        steps=STEPS,
        batch_size=4,
        adversarial=1,
        out=tmp_path / "out",
    )
    options.check()
    evaluate.main(options)
    content = json.loads((tmp_path / "out" / "mitigations.json").read_text())
    entries = content["mitigations"]
    assert list(entries) == ["none", "guard_guidance:repulsion=1"]
    assert [entry["forwards"] for entry in entries.values()] == [2 * STEPS, 3 * STEPS]
    for entry in entries.values():
        assert entry["samples"] == 4
        assert 0 <= entry["reproduced_low"] <= entry["reproduced"] <= entry["reproduced_high"] <= 1
        assert entry["kinds"].keys() == {"v", "t"}
        assert entry["seconds"] > 0
        assert entry["adversarial"] == {"retriggered": 0.5, "control": 0.0}
    assert searched == [(MEMORIZED[:1], "Mitigation")]
    assert attacked == [(MEMORIZED[:1], (1, 8, 8, 3), name) for name in ("Mitigation", "GuardGuidance")]
    assert entries["none"]["change_clean"] == pytest.approx(0, abs=1e-6)
    assert entries["guard_guidance:repulsion=1"]["change_clean"] > 1e-3
    assert "training image" in content["reference"]
    table = pq.read_table(tmp_path / "out" / "mitigations.parquet").to_pylist()
    assert [row["mitigation"] for row in table] == list(entries)
    assert "| `guard_guidance:repulsion=1` |" in (tmp_path / "out" / "mitigations.md").read_text()
    with Image.open(tmp_path / "out" / "mitigations.png") as picture:
        assert picture.width > 300
    assert sampled_with == ["Mitigation"] * 2 + ["GuardGuidance"] * 2
    manifest = json.loads((options.out / "manifest.json").read_text())
    del manifest["parts"]["guard_guidance:repulsion=1"]  # as if killed before it was done
    (options.out / "manifest.json").write_text(json.dumps(manifest))
    options.check()
    evaluate.main(options)
    assert sampled_with[4:] == ["GuardGuidance"] * 2
    assert len(searched) == 1
    resumed = json.loads((options.out / "mitigations.json").read_text())["mitigations"]
    assert list(resumed) == list(entries)
    assert resumed["none"] == entries["none"]
    timed = ("seconds", "memory")
    for name, value in resumed["guard_guidance:repulsion=1"].items():
        assert name in timed or value == entries["guard_guidance:repulsion=1"][name], name
    with pytest.raises(InputError, match=r"holds a run with other settings: steps 3 is now 4; .*--overwrite"):
        evaluate.main(dataclasses.replace(options, steps=4))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": MEMORIZED[0]}) + "\n")
    with pytest.raises(InputError, match=MEMORIZED[1]):
        evaluate_mitigations(options, MEMORIZED, CLEAN)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mitigations": "hope"}, "hope"),
        ({"mitigations": "attention_mask", "kind": "sort"}, "--kind"),
        ({"clip": "folder"}, "--clip has no effect"),
        ({"adversarial": 1}, "--adversarial has no effect"),
        ({"mitigations": "attention_mask", "sscd": "none.pt"}, "--sscd"),
        ({"mitigations": "attention_mask", "images_per_prompt": 0}, "--images-per-prompt"),
        ({"mitigations": "attention_mask", "memorized": __file__, "clean": __file__, "adversarial": 2}, "--pictures"),
    ],
)
def test_wrong_options_are_named(options, named, tmp_path):
    with pytest.raises(InputError, match=named):
        evaluate.Options(out=tmp_path, **options).check()


@pytest.mark.parametrize(
    ("mitigation", "error"),
    [("paraphrase_guidance", InputError), ("stability_clamp:clean=gone.txt", FileNotFoundError)],
)
def test_a_mitigation_without_its_file_is_refused_before_a_model_is_loaded(mitigation, error, tmp_path, monkeypatch):
    monkeypatch.setattr("memattn_jax.pipeline.StableDiffusion.from_pretrained", None)
    texts = tmp_path / "texts.txt"
    texts.write_text("a prompt\n")
    options = evaluate.Options(out=tmp_path, mitigations=mitigation, memorized=str(texts), clean=str(texts))
    with pytest.raises(error, match=r"paraphrases=FILE|gone\.txt"):
        evaluate.main(options)


def test_a_kind_that_is_missing_is_none(tmp_path):
    path = tmp_path / "memorized.jsonl"
    path.write_text('{"prompt": "a", "sort": "v"}\n{"prompt": "b", "sort": null}\n{"prompt": "c"}\n')
    options = evaluate.Options(mitigations="attention_mask", memorized=str(path), kind="sort", out=tmp_path)
    assert read_kinds(options, ["a", "b", "c"]) == ["v", None, None]


def test_parts_of_a_run(tmp_path):
    """What is done is found again; other settings, shared or a part's own, are refused; damage is done again."""
    store, same = Store(tmp_path), {"command": "evaluate --mitigations", "model": "m", "seed": 0}
    part = Part({"share": 0.5}, {"images": np.arange(4, dtype=np.uint8)})
    Parts(store, same, overwrite=False).write("one", {"scale": 1.0}, part)
    parts = Parts(store, same, overwrite=False)
    found = parts.read("one", {"scale": 1.0})
    assert found.results == part.results
    np.testing.assert_array_equal(found.arrays["images"], part.arrays["images"])
    assert parts.read("two", {}) is None
    with pytest.raises(InputError, match=r"one\.scale 1\.0 is now 2"):
        parts.read("one", {"scale": 2})
    with pytest.raises(InputError, match="seed 0 is now 1"):
        Parts(store, same | {"seed": 1}, overwrite=False)
    assert Parts(store, same | {"seed": 1}, overwrite=True).read("one", {"scale": 1.0}) is None
    parts.write("two", {}, part)
    (tmp_path / "001.npz").write_bytes((tmp_path / "001.npz").read_bytes()[:90])
    assert Parts(store, same, overwrite=False).read("two", {}) is None
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        Parts(store, same, overwrite=False)


def test_an_embedding_of_textual_inversion_needs_no_mitigation(tmp_path):
    """Detectors are evaluated with it, too: the file is looked for."""
    with pytest.raises(InputError, match="no such file"):
        evaluate.Options(out=tmp_path, embedding=(str(tmp_path / "none.safetensors"),)).check()


def test_what_has_no_loss_is_refused(matrices):
    other = dataclasses.replace(matrices, scheduler_config={**matrices.scheduler_config, "prediction_type": "sample"})
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="no loss for prediction_type 'sample'"):
        optimise_embeddings(other, ["a"], pictures, Mitigation(), Attack(), {"steps": 2})


def test_prompts_are_attacked_one_by_one_and_sampled_in_batches(matrices, monkeypatch):
    """What is found for a prompt depends on no other, and memory not on their number."""
    prompts, attack, run = ["a cat", "the house", "a"], Attack(steps=2, draws=2, seed=2**32 - 1), {"steps": STEPS}
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    programs = adversarial.descend._cache_size()
    every = optimise_embeddings(matrices, prompts, images, Mitigation(), attack, run)
    alone = optimise_embeddings(matrices, prompts[1:2], images[1:2], Mitigation(), attack, run)
    np.testing.assert_array_equal(every[1:2], alone)
    assert adversarial.descend._cache_size() <= programs + 1
    batches = []

    def counted(model, texts, settings):
        batches.append(texts)
        return sample(model, texts, settings)

    monkeypatch.setattr(adversarial, "sample", counted)
    plain = np.stack([every, every])
    found = [retriggered(matrices, prompts, images, Mitigation(), attack, run, plain, batch) for batch in (2, 8)]
    assert found[0] == found[1]
    assert batches == [prompts[:2], prompts[2:] * 2] * 2 + [prompts] * 2
