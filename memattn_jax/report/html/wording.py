"""Numbers and names of an audit as its report and its model card put them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

LOG = "log"
OF = {
    LOG: "the log",
    "flagged": "flagged prompts",
    "not flagged": "prompts that are not flagged",
    "unknown": "prompts without a verdict",
    "mitigated": "flagged prompts, with the mitigation",
}


def digits(share: float) -> str:
    """A share in percent, without the sign: one decimal place, two significant digits where it is small."""
    if share in (0, 1):
        return f"{100 * share:.0f}"
    return f"{100 * share:.2g}" if 1e-6 < share < 0.001 else f"{100 * share:.1f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 as text: 0.0241 is "2.4 %", with a space that does not break."""
    return "–" if share is None else f"{digits(share)}\u00a0%"


def interval(rate: Mapping[str, Any]) -> str:
    """The interval of a rate: "1.5 to 3.6 %"."""
    return f"{digits(rate['low'])} to {percent(rate['high'])}"


def number(value: float | int | None) -> str:
    """A count as it is, a score with three significant digits; a dash where there is none."""
    if isinstance(value, int):
        return str(value)
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def seconds(value: float) -> str:
    """A duration in its largest units: "8 min 41 s"."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def confidence(rate: Mapping[str, Any]) -> str:
    """The level of a rate's interval: "95 %"."""
    return f"{100 * rate['confidence']:g}\u00a0%"


def subject(rate: Mapping[str, Any]) -> str:
    """What a rate is a share of: "flagged prompts", "images of flagged prompts"."""
    of = f"images of {OF[rate['of']]}" if rate["what"] == "regurgitated" else OF[rate["of"]]
    return of if rate["kind"] is None else f"{of}, kind “{rate['kind']}”"


def measure_text(measure: Mapping[str, Any]) -> str:
    """A measure with its threshold: "correlation of at least 0.9, shifts of up to 4 pixels"."""
    preset = f", {measure['preset']}" if measure["preset"] else ""
    return f"{measure['name']} of at least {measure['threshold']:g}{preset}"


def deciding(audit: Mapping[str, Any], against: str) -> str:
    """The measures that decide against "training pictures" or "seeds", in one phrase; empty where there is none."""
    measures = [each for each in audit["confirmation"]["measures"] if each["against"] == against and each["decides"]]
    return " or ".join(map(measure_text, measures))


def is_sample(audit: Mapping[str, Any]) -> bool:
    """Whether prompts are a sample of a log, from which rates follow; those that a search found are none."""
    return audit["verdict"]["refused"] is None or any(rate["needed"] is not None for rate in audit["rates"])


def flat(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names and values: {"control": {"rate": 0.05}} is ("control, rate", "0.05")."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flat(value, ", ".join(filter(None, (name, key))))
    elif isinstance(values, list) and any(isinstance(value, Mapping | list) for value in values):
        for place, value in enumerate(values, 1):
            yield from flat(value, f"{name} {place}")
    elif isinstance(values, list):
        yield name, ", ".join(map(str, values)) or "none"
    else:
        yield name, "none" if values in (None, "") else f"{values:.6g}" if isinstance(values, float) else str(values)
