"""The files of a CLIP tokenizer, read and checked here; transformers gets vocabulary, merges and special tokens alone.

transformers' own `from_pretrained` takes any argument that tokenizer_config.json names, among them other files to read.

    tokenizer.json, or vocab.json and merges.txt
    tokenizer_config.json, special_tokens_map.json, added_tokens.json      where they are there
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memattn_jax.checkpoints.json_file import read_json
from memattn_jax.checkpoints.mapped import map_file, refuse_page, refuse_pipe
from memattn_jax.errors import InputError
from memattn_jax.text import printable

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
LARGEST = 2**25  # bytes of merges.txt; CLIP's has half a million


def tokenizer_files(folder: Path) -> set[str]:
    """Names of the files in a tokenizer's folder.

    Raises:
      InputError: a vocabulary is missing, or something else is in its file's place.
    """
    files = {path.name for path in folder.iterdir()}
    needed = ("tokenizer.json",) if "tokenizer.json" in files else ("vocab.json", "merges.txt")
    if not files.issuperset(needed):
        raise InputError(f"{folder}: no CLIP tokenizer (expected vocab.json and merges.txt, or tokenizer.json)")
    for path in (folder / name for name in needed):
        refuse_page(path, map_file(path)[:64].tobytes())
    return files


def read_tokenizer(folder: Path) -> Any:
    """CLIPTokenizer of transformers, from a folder; raises InputError if it has none, or files that are damaged."""
    files = tokenizer_files(folder)
    from transformers import CLIPTokenizer  # a second of imports that only prompts need

    try:
        vocabulary, merges, added = read_vocabulary(folder)
        tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=merges, **read_special(folder, files, added))
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = printable(str(error).partition("\n")[0], 80)
        raise InputError(f"{folder}: no CLIP tokenizer ({reason})") from None
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no padding token or no end token")
    return tokenizer


def save_tokenizer(clip: Any, folder: Path) -> None:
    """Writes a CLIPTokenizer as transformers 5 does, and vocab.json and merges.txt, which transformers 4 reads."""
    clip.save_pretrained(folder)
    model = read_json(folder / "tokenizer.json")["model"]
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[Mapping[str, Any]]]:
    """Ids of the tokens, merges in order, and what tokenizer.json says of the tokens added to them.

    Raises:
      InputError, ValueError: not those of a byte-pair encoding.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        content = read_json(path)
        model, added = content.get("model"), content.get("added_tokens", [])
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(added, list):
            raise ValueError("tokenizer.json has no byte-pair encoding")
        vocabulary, pairs = model.get("vocab"), model.get("merges")
    else:
        vocabulary, pairs, added = read_json(folder / "vocab.json"), list(merge_lines(folder / "merges.txt")), []
    if not isinstance(vocabulary, dict) or any(type(i) is not int or not 0 <= i < 2**31 for i in vocabulary.values()):
        raise ValueError("the vocabulary is not one of tokens and their numbers")
    if not isinstance(pairs, list):
        raise ValueError("the merges are no list")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]
    if any(len(pair) != 2 or not all(isinstance(token, str) for token in pair) for pair in merges):
        raise ValueError("a merge is not one of two tokens")
    return vocabulary, [(first, second) for first, second in merges], added


def merge_lines(path: Path) -> Iterator[str]:
    """The lines of merges.txt that are merges; raises InputError for another kind of file, or one of megabytes."""
    refuse_pipe(path)
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path}: too large, a tokenizer's file has less than {LARGEST >> 20} MB")
    data = path.read_bytes()
    refuse_page(path, data[:64])
    try:
        lines = data.decode().replace("\r\n", "\n").split("\n")  # of a checkout on Windows
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file") from None
    return (line for line in lines if line and not line.startswith("#version"))


def read_special(folder: Path, files: set[str], added: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of CLIPTokenizer: the special tokens, tokens that were added to the vocabulary, and its length.

    Source: transformers, tokenization_utils_base.py, `_from_pretrained`.

    Raises:
      InputError, ValueError, TypeError: a token that is none.
    """
    config = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    decoder = {}
    if "added_tokens_decoder" in config:
        decoder = {int(index): as_token(token) for index, token in config["added_tokens_decoder"].items()}
    else:
        if "special_tokens_map.json" in files:
            config |= read_json(folder / "special_tokens_map.json")
        if "added_tokens.json" in files:
            special = {str(as_token(config[name])) for name in SPECIAL if config.get(name)}
            for text, index in read_json(folder / "added_tokens.json").items():
                flags = {"content": text, "normalized": text not in special, "special": text in special}
                decoder[index] = as_token(flags)
        for token in added:
            decoder[token["id"]] = as_token(token)
    if any(type(index) is not int or not 0 <= index < 2**31 for index in decoder):
        raise ValueError("an added token has no number")
    known = {str(token): token for token in decoder.values()}
    arguments = {name: as_token(config[name]) for name in SPECIAL if config.get(name) is not None}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        raise ValueError("the special tokens are no list")
    length = config.get("model_max_length")
    return {name: known.get(str(token), token) for name, token in arguments.items()} | {
        "added_tokens_decoder": decoder,
        "extra_special_tokens": [as_token(token) for token in extra],
        "model_max_length": length if type(length) is int and 0 < length < 2**31 else None,
    }


def as_token(value: Any) -> Any:
    """A token in one of the forms that transformers writes; raises ValueError for another."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError("a special token is no text")
    flags = {name: value[name] for name in FLAGS if isinstance(value.get(name), bool)}
    return AddedToken(value["content"], **flags)
