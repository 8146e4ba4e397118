"""Prompts from files, one record at a time: a million take no more memory than one.

.txt, a line each; .csv and .tsv; .jsonl, .ndjson and .json; .parquet; any of the text formats with .gz; a folder of
such files, its sub-folders included; standard input, a line each; and all of them in object storage, as
gs://bucket/prompts.parquet. Each record of a source is one prompt, or says why it is none.
"""

from memattn_jax.prompts.record import Prompt, Wanted, as_text
from memattn_jax.prompts.stream import count_prompts, read_prompts, stream_prompts

__all__ = ["Prompt", "Wanted", "as_text", "count_prompts", "read_prompts", "stream_prompts"]
