"""Numbers as Markdown."""

from collections.abc import Iterable, Sequence

from demo_evaluation.separation import Auroc, Share


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(value: object) -> str:
    """A number with as many places as it deserves, or a text."""
    if isinstance(value, Auroc):
        return f"{value.value:.3f} [{value.low:.2f}, {value.high:.2f}]"
    if isinstance(value, Share):
        return f"{percent(value.value)} [{100 * value.low:.0f}, {100 * value.high:.0f}]"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def plain(value: object) -> object:
    """What JSON holds of a number."""
    return value._asdict() if isinstance(value, (Auroc, Share)) else value
