"""Prompts from files, one record at a time: a million take no more memory than one.

.txt, one prompt per line; .csv and .tsv; .jsonl, .ndjson and .json; .parquet; any of the text formats with .gz; a
folder of such files, searched recursively; standard input, one prompt per line; and all files also in object storage,
such as gs://bucket/prompts.parquet. Each record of a source is one prompt, or has an error that says why it is not.
"""

from memattn_jax.prompts.record import Prompt, Wanted, as_text
from memattn_jax.prompts.stream import read_prompts, stream_prompts

__all__ = ["Prompt", "Wanted", "as_text", "read_prompts", "stream_prompts"]
