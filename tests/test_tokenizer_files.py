"""A tokenizer's files are read as transformers reads them, but for what they could make it do besides."""

import json
import shutil
from pathlib import Path

import pytest
from small_checkpoint import BEGIN, END, write_tokenizer
from transformers import CLIPTokenizer

from memattn_jax.checkpoints.clip import clip_tokenizer
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.checkpoints.tokenizer_files import read_tokenizer, read_vocabulary, save_tokenizer
from memattn_jax.errors import InputError

PROMPTS = (
    "",
    "the cat  and THE dog's 3 hats",
    f"a {END} b{BEGIN}!",
    "<new> and <new>x",
    "é 漢字 <other> ok",
    "!!! \n !",
)


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    write(folder, path.name, json.loads(path.read_text()) | changes)


def token(text: str, **flags: bool) -> dict[str, object]:
    return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags


def plain(folder: Path, size: int) -> None:
    """As written."""


def of_2022(folder: Path, size: int) -> None:
    """As in Stable Diffusion 1's and 2's repositories."""
    special = {"bos_token": token(BEGIN), "eos_token": token(END), "unk_token": token(END)}
    write(folder, "special_tokens_map.json", special | {"pad_token": "!"})
    edit(folder, **{name: {"__type": "AddedToken"} | value for name, value in special.items()})


def without_config(folder: Path, size: int) -> None:
    (folder / "tokenizer_config.json").unlink()


def added_tokens(folder: Path, size: int) -> None:
    """As transformers 4 wrote a tokenizer with a token of textual inversion."""
    write(folder, "added_tokens.json", {"<new>": size, "<other>": size + 1})


def added_decoder(folder: Path, size: int) -> None:
    decoder = {str(size - 1): token(END, special=True), str(size): token("<new>", normalized=False, lstrip=True)}
    edit(folder, added_tokens_decoder=decoder, additional_special_tokens=["<other>"])


def fast(folder: Path, size: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def fast_alone(folder: Path, size: int) -> None:
    fast(folder, size)
    without_config(folder, size)


@pytest.mark.parametrize("form", [plain, of_2022, without_config, added_tokens, added_decoder, fast, fast_alone])
def test_as_transformers(tmp_path, form):
    form(tmp_path, write_tokenizer(tmp_path, ("the", "and")))
    ours, theirs = read_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS:
        ids = theirs(prompt)["input_ids"]
        assert ours(prompt)["input_ids"] == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.pad_token_id, ours.eos_token_id) == (theirs.pad_token_id, theirs.eos_token_id)
    assert ours.model_max_length == theirs.model_max_length
    save_tokenizer(ours, tmp_path / "again")
    again = CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert [again(prompt)["input_ids"] for prompt in PROMPTS] == [theirs(prompt)["input_ids"] for prompt in PROMPTS]
    assert (again.pad_token, again.model_max_length) == (theirs.pad_token, theirs.model_max_length)


@pytest.mark.parametrize(("length", "padded"), [(9, 9), (77, 16), (None, 16), (10**30, 16)])
def test_prompts_are_padded_to_the_tokenizers_length_or_the_encoders(tmp_path, length, padded):
    write_tokenizer(tmp_path, ("the", "and"))
    edit(tmp_path, model_max_length=length)
    assert Tokenizer(tmp_path, 16)(["the and"]).input_ids.shape == (1, padded)


def test_saved_files_are_of_both_kinds_and_any_lines(tmp_path):
    """transformers 4 reads vocab.json and merges.txt, which may have been checked out on Windows."""
    write_tokenizer(tmp_path, ("the", "and"))
    save_tokenizer(read_tokenizer(tmp_path), tmp_path / "again")
    expected = read_vocabulary(tmp_path)[:2]
    assert read_vocabulary(tmp_path / "again")[:2] == expected
    (tmp_path / "again" / "tokenizer.json").unlink()
    assert read_vocabulary(tmp_path / "again")[:2] == expected
    merges = tmp_path / "again" / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert read_vocabulary(tmp_path / "again")[:2] == expected


def test_a_config_names_no_other_files(tmp_path):
    """Arguments of transformers' own reader, which would open files outside the folder."""
    folder, outside = tmp_path / "tokenizer", tmp_path / "outside"
    write_tokenizer(folder, ("the", "and"))
    write_tokenizer(outside, ("cat",))
    fast(outside, 0)
    expected = read_tokenizer(folder).get_vocab()
    edit(folder, tokenizer_file=str(outside / "tokenizer.json"), fast_tokenizer_files=["../outside/tokenizer.json"])
    edit(folder, vocab_file=str(outside / "vocab.json"), gguf_file=str(outside / "x.gguf"), init_inputs=[{}])
    assert read_tokenizer(folder).get_vocab() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", {"a": -1}),
        ("vocab.json", {"a": "1"}),
        ("vocab.json", {"a": 2**40}),
        ("added_tokens.json", {"a": None}),
        ("added_tokens.json", {"a": 10**30}),
        ("tokenizer_config.json", {"eos_token": 3}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "y"}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": ["a b c"]}}),
    ],
)
def test_wrong_types(tmp_path, name, content):
    write_tokenizer(tmp_path, ("the", "and"))
    write(tmp_path, name, content)
    with pytest.raises(InputError, match="no CLIP tokenizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "tokenizer: no CLIP tokenizer"),
        ({"vocab.json": "{}"}, "tokenizer: no CLIP tokenizer"),
        ({"vocab.json": "{}", "merges.txt": "version https://git-lfs.github.com/spec/v1"}, "merges.txt: is a git-lfs"),
    ],
)
def test_what_is_no_tokenizer_is_refused_with_the_configs(model, tmp_path, files, message):
    """Before weights are read."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name, content in files.items():
        (folder / "tokenizer" / name).write_text(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_clips_own_vocabulary_is_complete():
    """Ids that are known from CLIP's own tokenizer."""
    clip = clip_tokenizer()
    assert len(clip) == 49408
    ids = clip("a photo of an astronaut riding a horse on mars").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    assert (clip.pad_token_id, clip_tokenizer("!").pad_token_id) == (49407, 0)
    assert json.loads(clip.backend_tokenizer.to_str())["model"]["vocab"]["!"] == 0
