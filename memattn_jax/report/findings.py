"""What a detecting run says once its rows are there: how many are flagged, and which prompts score highest."""

import heapq
import io
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax.detectors.calibration.conformal import benjamini_hochberg
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.detectors.calibration.verdicts import MEMORIZED, UNKNOWN, Rule
from memattn_jax.report.carried import Carried
from memattn_jax.report.detection import tell
from memattn_jax.report.results import write_json_lines
from memattn_jax.runs.table import Row, ShardedTable
from memattn_jax.text import printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer

LISTED = 50  # prompts on the terminal
NAMED = 2  # statistics in which they differ, that a warning names
SAMPLED = 2000  # prompts that are compared with the calibration's
AT_ONCE = 4096  # rows in memory
VERDICTS = "_verdicts.parquet"  # whoever reads the folder as one data set leaves it out
VERDICT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("p", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("over", pa.list_(pa.string())),
    ]
)


@dataclass
class Findings:
    """What one pass over a table finds.

    Attributes:
      rows: how many there are.
      failed: those with an error.
      cut: those whose prompt was cut.
      verdicts, over, p: how often each occurs.
      highest: numbers of the rows that score highest.
      sample: some of the prompts that could be read, drawn alike from all.
    """

    rows: int = 0
    failed: int = 0
    cut: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    over: Counter[str] = field(default_factory=Counter)
    p: Counter[float] = field(default_factory=Counter)
    highest: list[int] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)


def in_parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows, some at a time."""
    rows = iter(rows)
    while part := list(islice(rows, AT_ONCE)):
        yield part


def scores_of(rows: Sequence[Row], detectors: Iterable[str]) -> dict[str, np.ndarray]:
    """Their scores, float64 [rows]; NaN where there is none."""
    return {name: np.array([row[name] for row in rows], np.float64) for name in detectors}


def find(table: ShardedTable, detectors: Sequence[str], rule: Rule | None) -> Findings:
    """Looks at all rows that are there, once, few of them in memory.

    Rows are ranked by the joint statistic, or without a rule by the first detector's score.
    """
    found, chance, read = Findings(), random.Random(0), 0

    def ranked() -> Iterator[tuple[float, int]]:
        nonlocal read
        for part in in_parts(
            table.rows(["row", "prompt", "length", "p", "verdict", "over", "error", "cut", *detectors])
        ):
            scores = scores_of(part, detectors)
            ranks = rule.joint.statistic(scores) if rule is not None else scores[detectors[0]]
            for row, rank in zip(part, ranks.tolist(), strict=True):
                found.rows += 1
                found.failed += row["error"] is not None
                found.cut += row["cut"] is True
                found.over.update(row["over"] or ())
                found.verdicts.update([row["verdict"]] * (row["verdict"] is not None))
                found.p.update([row["p"]] * (row["p"] is not None))
                if row["length"] is not None:  # reservoir sampling, Vitter's algorithm R
                    read += 1
                    place = chance.randrange(read)
                    if read <= SAMPLED:
                        found.sample.append(row["prompt"])
                    elif place < SAMPLED:
                        found.sample[place] = row["prompt"]
                yield -math.inf if math.isnan(rank) else rank, -row["row"]

    found.highest = [-number for _, number in heapq.nlargest(LISTED, ranked())]
    return found


def pick(table: ShardedTable, numbers: Iterable[int]) -> dict[int, Row]:
    """Some whole rows, by number."""
    wanted = set(numbers)
    shards = sorted({number // table.shard_rows for number in wanted})
    return {row["row"]: row for shard in shards for row in table.load(shard) if row["row"] in wanted}


def summarize(
    table: ShardedTable, detectors: Sequence[str], rule: Rule | None, kind: Kind | None, carried: Carried
) -> None:
    """Tells of all rows, and repeats them in results.jsonl where they are few and no other process adds to them.

    With `rule.fdr`, writes _verdicts.parquet once all rows are there; of several processes, the last to finish does.

    Args:
      table: finished by this process.
      detectors: of its columns.
      rule: how verdicts are made; None without a calibration.
      kind: of the calibration's prompts; likewise.
      carried: what rows bring along.
    """
    found = find(table, detectors, rule)
    alone, whole = table.processes == 1, found.rows == table.jobs
    settle: Callable[[Sequence[Row]], list[Row]] = list
    level = rule.fpr if rule is not None else None
    if rule is not None and rule.fdr is not None and whole:
        level = benjamini_hochberg(found.p, rule.fdr)
        settle = settled(rule, detectors, level)
        write_verdicts(table, settle, detectors, found)
    listing = pick(table, found.highest)
    order = "joint statistic" if rule is not None else detectors[0]
    print(f"the {len(found.highest)} of {found.rows} prompts with the highest {order}:")
    for row in settle([listing[number] for number in found.highest if number in listing]):
        print(printable(tell(row, detectors)))
    if rule is not None:
        tell_verdicts(found, rule, level)
    if found.failed:
        print(f"{found.failed} prompts lack a score; the column error says why")
    if found.cut:
        print(carried.told(found.cut))
    if rule is not None and kind is not None:
        compare(found.sample, kind, carried.tokenizer)
    repeated = " and results.jsonl" if alone and write_json_lines(table, found.rows, settle) else ""
    rest = "" if alone else f" of {table.jobs}, by all {table.processes} processes so far"
    print(f"{found.rows} prompts{rest} in {table.store}, as Parquet files{repeated}")


def tell_verdicts(found: Findings, rule: Rule, level: float | None) -> None:
    """How many prompts are flagged, and how many of them may be by chance."""
    if level is None:
        print(f"verdicts at --fdr {rule.fdr:g} need all rows; the process that finishes last writes {VERDICTS}")
        return
    for name in rule.joint.names:
        print(f"{name}: {found.over[name]} of {found.rows} prompts over the threshold (*)")
    flagged, clean = found.verdicts[MEMORIZED], len(rule.joint.clean)
    total = f"{MEMORIZED}: {flagged} of {found.rows} prompts"
    if rule.fdr is None:
        print(f"{total}, at --fpr {rule.fpr:g}: clean prompts alone would make {rule.fpr * found.rows:.1f}")  # type: ignore[operator]
    else:
        print(f"{total}, at --fdr {rule.fdr:g}: at most {rule.fdr * flagged:.1f} of them expected to be false")
        tests = sum(found.p.values())
        fewest = math.ceil(tests / (rule.fdr * (1 + clean)))
        if fewest > max(1, flagged):
            warnings.warn(
                f"{clean} clean prompts let --fdr {rule.fdr:g} flag none of {tests} prompts but at least {fewest} at "
                f"once; to flag a single one takes {math.ceil(tests / rule.fdr) - 1}",
                stacklevel=1,
            )
    if found.verdicts[UNKNOWN]:
        print(f"{UNKNOWN}: {found.verdicts[UNKNOWN]} of {found.rows} prompts, which are not told to be clean")


def settled(rule: Rule, detectors: Sequence[str], level: float) -> Callable[[Sequence[Row]], list[Row]]:
    """Rows with the verdict that follows from all p-values; rows without a score are left as they are."""

    def settle(rows: Sequence[Row]) -> list[Row]:
        verdicts = rule.settle(scores_of(rows, detectors), level)
        return [row if row["length"] is None else row | verdict for row, verdict in zip(rows, verdicts, strict=True)]

    return settle


def write_verdicts(
    table: ShardedTable, settle: Callable[[Sequence[Row]], list[Row]], detectors: Sequence[str], found: Findings
) -> None:
    """Writes _verdicts.parquet, a row a prompt, and counts what is in it."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, VERDICT_SCHEMA, compression="zstd") as writer:
        for part in in_parts(table.rows(["row", "length", "p", "verdict", "over", *detectors])):
            rows = settle(part)
            for row in rows:
                found.over.update(row["over"] or ())
                found.verdicts.update([row["verdict"]] * (row["verdict"] is not None))
            writer.write_table(pa.Table.from_pylist(rows, VERDICT_SCHEMA))
    table.store.write(VERDICTS, sink.getvalue())


def compare(prompts: Sequence[str], kind: Kind, tokenizer: "Tokenizer") -> None:
    """Warns where prompts are unlike those that the rates were fitted on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that prompts are cut was told of each
        tokens = tokenizer(prompts)
    ids = [row[1 : length - 1].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]
    if prompts and (names := kind.differences(prompts, ids)):
        shown = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
        warnings.warn(
            f"these prompts are unlike the calibration's ({shown}), and its rates may not hold for them; "
            "calibrate on clean prompts of this kind",
            stacklevel=1,
        )
