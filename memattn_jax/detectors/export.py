"""First-step detectors as one file that runs with JAX alone: token ids in, scores out.

A zip archive, of which nothing is compressed, pickled or run:

    detector.jaxexport     the program, StableHLO as `jax.export` serializes it
    arrays.safetensors     the weights, the noise, the empty prompt's part and the schedule's numbers, its arguments
    metadata.json          detectors, thresholds, settings, platforms, sizes, versions
    tokenizer/             the checkpoint's, as transformers reads it

The program is what `Scorer` runs. Arrays are its arguments and not constants in it, since a serialized program ends at
2 GB, less than Stable Diffusion in float32; arrays that no score depends on are left out.
"""

import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from safetensors.numpy import save

from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.checkpoints.tokenizer_files import save_tokenizer
from memattn_jax.detectors.cost import flops
from memattn_jax.detectors.programs import score_first_step
from memattn_jax.detectors.scorer import Scorer
from memattn_jax.diffusion.model import embed
from memattn_jax.errors import InputError, check_name
from memattn_jax.registries import PLATFORMS
from memattn_jax.settings import jax_settings
from memattn_jax.text import printable

CUDNN = "__cudnn$fmhaSoftmax"  # fused attention, which the model takes on NVIDIA GPUs in half precision

Arrays = dict[str, Array]
Score = Callable[[Arrays, Array], dict[str, Array]]  # arrays, int32 [batch, tokens] to {detector: float32 [batch]}


class Artifact(NamedTuple):
    """A detector, ready to be written.

    Attributes:
      program: what `jax.export.deserialize` reads; called with the arrays and int32 [prompts, tokens], any number of
        prompts but none, it gives {detector: float32 [prompts]}.
      arrays: by name, those that the program uses.
      platforms: that it was lowered for.
      flops: of one prompt in a full batch, as XLA counts them.
    """

    program: bytes
    arrays: dict[str, np.ndarray]
    platforms: tuple[str, ...]
    flops: float


def check_exportable(scorer: Scorer) -> None:
    """Raises InputError for detectors that need more than the first step."""
    for name in scorer.detectors:
        if name not in scorer.first_step:
            raise InputError(f"{name} cannot be exported; only first-step detectors can")


def check_platforms(platforms: tuple[str, ...]) -> None:
    """Raises InputError for a platform that JAX lowers no program for, or one named twice."""
    for platform in platforms:
        check_name("platform", platform, PLATFORMS)
    if len(set(platforms)) < len(platforms):
        raise InputError(f"platforms {','.join(platforms)}: one is listed twice")


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises InputError for tokens of several embeddings: transformers' tokenizer, which is exported, knows none."""
    if tokenizer.placeholders:
        token = tokenizer.clip.convert_ids_to_tokens(next(iter(tokenizer.placeholders)))
        raise InputError(f"'{printable(token, 40)}' stands for several embeddings, and exported tokens for one each")


def check_serializer() -> None:
    """Raises InputError where JAX lacks the package that it serializes programs with, and does not itself depend on."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("exporting a program needs flatbuffers: pip install 'memattn-jax[export]'")


def shapes_of(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of arrays."""
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}


def block_program(scorer: Scorer) -> tuple[Score, Arrays]:
    """What the scorer runs from token ids on, for batches of any one size, and all arrays that it is called with.

    The function takes some of the arrays, too: those left out are zero.
    """
    inputs = scorer.inputs(scorer.probes_for(None), None, None)
    parts = {"text_encoder": scorer.model.text_encoder, "inputs": inputs, "detectors": scorer.first_step}
    leaves, structure = jax.tree_util.tree_flatten_with_path(parts)

    def name(path: Any) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").removeprefix("inputs.")

    arrays = {name(path): jnp.asarray(leaf) for path, leaf in leaves}
    assert len(arrays) == len(leaves)
    shapes = shapes_of(arrays)

    def score(given: Arrays, input_ids: Array) -> dict[str, Array]:
        filled = [given[name] if name in given else jnp.zeros(of.shape, of.dtype) for name, of in shapes.items()]
        parts = jax.tree.unflatten(structure, filled)
        context = embed(parts["text_encoder"], input_ids)
        lengths = jnp.full(len(input_ids), input_ids.shape[1], jnp.int32)  # token ids alone do not say them
        inputs = replace(parts["inputs"], context=context, lengths=lengths)
        return score_first_step(inputs, parts["detectors"])[0]

    return score, arrays


def in_blocks(score: Score, size: int) -> Score:
    """The function for any number of prompts, none of whose shapes but the last depends on how many there are.

    Blocks of one size follow each other, the last filled up with its last prompt. The model itself takes no symbolic
    batch: it chooses forms by the number of rows. XLA unrolls a loop of one block.
    """

    def score_all(arrays: Arrays, input_ids: Array) -> dict[str, Array]:
        rows, tokens = input_ids.shape
        blocks = (rows + size - 1) // size
        filling = jnp.broadcast_to(input_ids[-1:], (blocks * size - rows, tokens))
        filled = jnp.concatenate([input_ids, filling]).reshape(blocks, size, tokens)
        scores = jax.lax.map(lambda block: score(arrays, block), filled)
        return {name: score.reshape(blocks * size)[:rows] for name, score in scores.items()}

    return score_all


def no_locations() -> AbstractContextManager[None]:
    """Keeps this machine's file names out of the programs lowered meanwhile."""
    return jax_settings(jax_traceback_in_locations_limit=0)


def lower(score: Score, arrays: Arrays, input_ids: Any, platforms: tuple[str, ...]) -> export.Exported:
    """The function for these shapes, as a program for several platforms.

    Raises:
      InputError: no one program can be for all of them.
    """
    # JAX does not vouch that later versions know cuDNN's calls; without them it would serialize no such program
    allowed = [export.DisabledSafetyCheck.custom_call(CUDNN)] if "cuda" in platforms else []
    program = export.export(jax.jit(score), platforms=platforms, disabled_checks=allowed)
    try:
        with no_locations():
            return program(shapes_of(arrays), input_ids)
    except (NotImplementedError, ValueError) as error:
        if len(platforms) == 1:
            raise
        raise InputError(  # JAX lowers each platform's form for all of them, and cuDNN's and a TPU's have no other
            f"platforms {','.join(platforms)}: where JAX finds a TPU or, for half precision, an NVIDIA GPU, programs "
            "are exported for one platform at a time; set JAX_PLATFORMS=cpu to export for several"
        ) from error


def used_by(program: export.Exported, arrays: Arrays) -> Arrays:
    """Those of the arrays, which the program was lowered for, that its results depend on."""
    (numbers, _), _ = jax.tree.unflatten(program.in_tree, range(len(program.in_avals)))
    return {name: arrays[name] for name, number in numbers.items() if number in program.module_kept_var_idx}


def export_detector(scorer: Scorer, batch_size: int, platforms: tuple[str, ...] = ()) -> Artifact:
    """Lowers and serializes the scorer's program, for any number of prompts.

    Args:
      scorer: without a mesh and without attribution.
      batch_size: prompts computed at once.
      platforms: to lower for, see `PLATFORMS`; none is that of the backend.

    Raises:
      InputError: a detector or a platform that cannot be exported, a noise for each prompt, no prompts at once, or
        flatbuffers is missing.
    """
    check_serializer()
    check_exportable(scorer)
    check_platforms(platforms)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; must be at least 1")
    if scorer.seed is None:
        raise InputError("per-prompt noise cannot be exported: an exported detector uses the same noise for all")
    assert scorer.model.mesh is None
    assert not scorer.attribute
    platforms = platforms or (export.default_export_platform(),)
    tokens = scorer.model.tokenizer.tokens
    score, arrays = block_program(scorer)
    block = jax.ShapeDtypeStruct((batch_size, tokens), jnp.int32)
    used = used_by(lower(score, arrays, block, platforms), arrays)
    (rows,) = export.symbolic_shape("prompts")
    every = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    program = lower(in_blocks(score, batch_size), used, every, platforms).serialize()
    cost = flops(jax.jit(score).trace(shapes_of(used), block)) / batch_size
    return Artifact(bytes(program), {name: np.asarray(array) for name, array in used.items()}, platforms, cost)


def write_artifact(path: Path, artifact: Artifact, about: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes the archive, whole or not at all; the same content gives the same bytes.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive, tempfile.TemporaryDirectory() as folder:

            def add(name: str, content: bytes) -> None:
                archive.writestr(zipfile.ZipInfo(name), content)  # stored as it is, dated 1980

            add("metadata.json", json.dumps(about, indent=1).encode() + b"\n")
            add("detector.jaxexport", artifact.program)
            add("arrays.safetensors", save(artifact.arrays))
            save_tokenizer(tokenizer.clip, Path(folder))
            for file in sorted(Path(folder).iterdir()):
                add(f"tokenizer/{file.name}", file.read_bytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
