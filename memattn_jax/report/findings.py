"""The summary of a detection run: how many prompts are flagged, and which score highest."""

import hashlib
import heapq
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memattn_jax.detectors.calibration.conformal import benjamini_hochberg
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.detectors.calibration.verdicts import MEMORIZED, UNKNOWN, Rule
from memattn_jax.report.carried import Carried
from memattn_jax.report.detection import format_row
from memattn_jax.report.results import write_json_lines
from memattn_jax.runs.shards import Row
from memattn_jax.runs.table import ShardedTable
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.checkpoints.tokenizer import Tokenizer

Settle = Callable[[Sequence[Row]], list[Row]]
LISTED = 50  # prompts on the terminal, those that score highest
NAMED = 2  # statistics that a warning names, where prompts differ from the calibration's
SAMPLED = 2000  # prompts that are compared with the calibration's
AT_ONCE = 4096  # rows in memory
VERDICTS = "_verdicts.parquet"  # the underscore hides it from readers that take the folder as one data set
LAST = {VERDICTS, "results.jsonl", "report.html"}  # what a run writes beside its table once all rows are there
VERDICT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("p", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("over", pa.list_(pa.string())),
    ]
)


class Findings:
    """Counts and samples of rows, each seen once, in any order.

    Attributes:
      columns: of a row that are looked at.
      rows: number of rows.
      failed: number of rows with an error.
      cut: number of rows whose prompt was cut.
      verdicts, over, p: how often each occurs.
    """

    def __init__(self, detectors: Sequence[str], rule: Rule | None):
        """Nothing is seen yet; rows rank by the joint statistic, or without a rule by the first detector's score."""
        self.detectors, self.rule = tuple(detectors), rule
        self.columns = ("row", "prompt", "length", "p", "verdict", "over", "error", "cut", *detectors)
        self.rows = self.failed = self.cut = 0
        self.verdicts: Counter[str] = Counter()
        self.over: Counter[str] = Counter()
        self.p: Counter[float] = Counter()
        self._highest: list[tuple[float, int, Row | None]] = []  # a heap of rank, −number, and the row if it is whole
        self._sample: list[tuple[int, str]] = []  # a heap of −(hash of the number), and the prompt

    def see(self, rows: Sequence[Row], whole: bool) -> None:
        """Counts rows; `whole` tells whether they have all columns of the table."""
        scores = scores_of(rows, self.detectors)
        ranks = self.rule.joint.statistic(scores) if self.rule is not None else scores[self.detectors[0]]
        for row, rank in zip(rows, ranks.tolist(), strict=True):
            self.rows += 1
            self.failed += row["error"] is not None
            self.cut += bool(row["cut"])
            self.over.update(row["over"] or ())
            self.verdicts.update([row["verdict"]] * (row["verdict"] is not None))
            self.p.update([row["p"]] * (row["p"] is not None))
            if row["length"] is not None:
                digest = hashlib.blake2b(b"%d" % row["row"], digest_size=8).digest()
                keep(self._sample, (-int.from_bytes(digest), row["prompt"]), SAMPLED)
            placed = -math.inf if math.isnan(rank) else rank
            keep(self._highest, (placed, -row["row"], row if whole else None), LISTED)

    def sample(self) -> list[str]:
        """Prompts that could be read, drawn uniformly; which ones depends on the rows' numbers alone."""
        return [prompt for _, prompt in self._sample]

    def highest(self, table: ShardedTable) -> list[Row]:
        """The rows that score highest, whole; the table is read for those that were not."""
        ranked = [(-number, row) for _, number, row in sorted(self._highest, key=lambda entry: entry[:2], reverse=True)]
        lacking = pick(table, [number for number, row in ranked if row is None])
        complete = (lacking.get(number) if row is None else row for number, row in ranked)
        return [row for row in complete if row is not None]


def keep(heap: list[Any], entry: tuple[Any, ...], most: int) -> None:
    """Adds an entry to a heap of the `most` largest."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


def in_parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in chunks of `AT_ONCE`."""
    rows = iter(rows)
    while part := list(islice(rows, AT_ONCE)):
        yield part


def scores_of(rows: Sequence[Row], detectors: Iterable[str]) -> dict[str, np.ndarray]:
    """The scores of rows, float64 [rows]; NaN where there is none."""
    return {name: np.array([row[name] for row in rows], np.float64) for name in detectors}


def pick(table: ShardedTable, numbers: Iterable[int]) -> dict[int, Row]:
    """Complete rows by number."""
    return {row["row"]: row for row in picked(table, numbers)}


def picked(table: ShardedTable, numbers: Iterable[int]) -> Iterator[Row]:
    """Complete rows in the order of their numbers, those of one shard in memory at a time."""
    for shard, part in groupby(sorted(set(numbers)), key=lambda number: number // table.shard_rows):
        yield from table.load(shard, numbers=part)


def summarize(
    table: ShardedTable,
    found: Findings,
    kind: Kind | None,
    carried: Carried,
    *,
    listed: bool = True,
) -> tuple[Settle, float | None]:
    """Prints a summary; copies the rows to results.jsonl if they are few and this is the only process.

    With `rule.fdr`, writes _verdicts.parquet once all rows exist; of several processes, the last one to finish does.

    Args:
      table: finished by this process.
      found: of the rows of this process; those of others are added.
      kind: statistics of the calibration's prompts; None without a calibration.
      carried: the columns from prompt records.
      listed: whether to print the prompts that score highest.

    Returns:
      What maps rows to the same with their final verdicts, and the level of the joint p-value that these follow from;
      None without a rule, or where rows are missing that it depends on.
    """
    detectors, rule = found.detectors, found.rule
    for part in in_parts(table.rows(found.columns, others=True)):
        found.see(part, False)
    alone, whole = table.processes == 1, found.rows == table.jobs
    settle: Settle = list
    level = rule.fpr if rule is not None else None
    if rule is not None and rule.fdr is not None and whole:
        level = benjamini_hochberg(found.p, rule.fdr)
        settle = settled(rule, detectors, level)
        write_verdicts(table, settle, detectors, found)
    if listed:
        highest = found.highest(table)
        order = "joint statistic" if rule is not None else detectors[0]
        print(f"prompts with the highest {order} ({len(highest)} of {found.rows}):")
        for row in settle(highest):
            print(printable(format_row(row, detectors)))
    if rule is not None:
        print_verdicts(found, rule, level)
    if found.failed:
        print(f"{counted(found.failed, 'prompt')} without a score; see the column error")
    if found.cut:
        print(carried.describe_cut(found.cut))
    if rule is not None and kind is not None:
        compare(found.sample(), kind, carried.tokenizer)
    repeated = " and results.jsonl" if write_json_lines(table, found.rows, settle) else ""
    rest = "" if alone else f" of {table.jobs}, by all {table.processes} processes so far"
    print(f"{counted(found.rows, 'prompt')}{rest} in {table.store}, as Parquet files{repeated}")
    return settle, level


def print_verdicts(found: Findings, rule: Rule, level: float | None) -> None:
    """Prints how many prompts are flagged, and how many of them to expect by chance."""
    if level is None:
        print(f"verdicts at --fdr {rule.fdr:g} need all rows; the process that finishes last writes {VERDICTS}")
        return
    total = counted(found.rows, "prompt")
    for name in rule.joint.names:
        print(f"{name}: {found.over[name]} of {total} over the threshold (*)")
    flagged, clean = found.verdicts[MEMORIZED], len(rule.joint.clean)
    memorized = f"{MEMORIZED}: {flagged} of {total}"
    if rule.fdr is None:
        chance = rule.fpr * found.rows  # type: ignore[operator]
        print(f"{memorized}, at --fpr {rule.fpr:g}: {chance:.1f} expected if all of them were clean")
    else:
        print(f"{memorized}, at --fdr {rule.fdr:g}: at most {rule.fdr * flagged:.1f} of these expected to be false")
        tests = sum(found.p.values())
        fewest = math.ceil(tests / (rule.fdr * (1 + clean)))
        if fewest > max(1, flagged):
            warnings.warn(
                f"with {counted(clean, 'clean prompt')} for p-values, --fdr {rule.fdr:g} can only flag {fewest} or "
                f"more of {tests}; to flag a single one takes {math.ceil(tests / rule.fdr) - 1} clean prompts besides "
                "those that the scales are fitted on",
                stacklevel=1,
            )
    if found.verdicts[UNKNOWN]:
        print(f"{UNKNOWN}: {found.verdicts[UNKNOWN]} of {total}, for lack of a score or of clean prompts")


def settled(rule: Rule, detectors: Sequence[str], level: float) -> Settle:
    """Rows with the verdict that follows from all p-values; rows without a score are left as they are."""

    def settle(rows: Sequence[Row]) -> list[Row]:
        verdicts = rule.settle(scores_of(rows, detectors), level)
        return [row if row["length"] is None else row | verdict for row, verdict in zip(rows, verdicts, strict=True)]

    return settle


def write_verdicts(table: ShardedTable, settle: Settle, detectors: Sequence[str], found: Findings) -> None:
    """Writes _verdicts.parquet, one row per prompt, and counts its verdicts."""
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
    """Warns where prompts are unlike those of the calibration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about prompts that are cut, which the summary counts
        tokens = tokenizer(prompts)
    ids = [row[1 : length - 1].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]
    if prompts and (names := kind.differences(prompts, ids)):
        shown = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
        warnings.warn(
            f"these prompts are unlike the calibration's ({shown}), so its rates may not hold for them; "
            "calibrate on clean prompts of this kind",
            stacklevel=1,
        )
