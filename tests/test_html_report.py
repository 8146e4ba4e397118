"""The audit's report as a file: what it holds and may load, and the memory it takes; and the model's card."""

import base64
import hashlib
import json
import re
import tracemalloc
from html.parser import HTMLParser

import audit_example
import pytest

from memattn_jax.errors import InputError
from memattn_jax.report.html import model_card, thumbnails, wording, write_report
from memattn_jax.report.html.plots import axis

ROWS = 8


class Page(HTMLParser):
    """Elements of a page, and the text of its scripts and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[dict[str, str | None], str]] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style") and data.strip():
            self.raw.append((attributes | {"tag": tag}, data))
        else:
            self.shown += data

    def json(self, name: str):
        return json.loads(next(text for attributes, text in self.raw if attributes.get("id") == name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("audit")
    audit_example.write_audit(made, ROWS)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def items(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def test_every_prompt_is_in_the_page_as_it_was(folder, page):
    blocks = [page.json(f"block-{place}") for place in range(ROWS)]
    wanted = items(folder)
    assert [block["prompt"] for block in blocks] == [item["prompt"] for item in wanted]
    assert [row[0] for row in page.json("index")] == [item["row"] for item in wanted]
    for block, item in zip(blocks, wanted, strict=True):
        files = [image["file"] for image in item["images"] + item["mitigated"]] + [item["images"][0]["nearest"]]
        assert set(block["pictures"]) == set(files) - {None}
        assert set(block["heat"]) == {str(each["token"]) for each in item["heatmaps"]}
        assert all(uri.startswith("data:image/webp;base64,UklGR") for uri in block["pictures"].values())


def test_nothing_of_a_prompt_becomes_markup(folder, page):
    text = (folder / "report.html").read_text(encoding="utf-8")
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == ROWS + 3  # the blocks, facts, index, and the one that runs
    assert sum("type" not in attributes for attributes in scripts) == 1
    assert '<script>alert("x")' not in text
    assert not {"\0", "\x1b", "\x07", "\u202e"} & set(text)
    assert "b" not in {tag for tag, _ in page.elements}


def test_the_page_loads_nothing(page):
    policy = next(
        attributes["content"] for tag, attributes in page.elements if tag == "meta" and "http-equiv" in attributes
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        text = next(text for attributes, text in page.raw if attributes["tag"] == tag and "type" not in attributes)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    loads = [
        attributes for tag, attributes in page.elements if "src" in attributes or tag in ("link", "iframe", "object")
    ]
    assert loads == []
    assert all(attributes["href"].startswith("#") for tag, attributes in page.elements if tag == "a")


def test_figures_of_the_audit_are_shown(folder, page):
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    shown = " ".join(page.shown.split())
    assert audit["verdict"]["sentence"] in shown
    assert all(limit in shown for limit in audit["limits"])
    assert hashlib.sha256((folder / "audit.json").read_bytes()).hexdigest() in shown
    for rate in audit["rates"] + audit["mitigation"]["rates"]:
        assert " ".join(f"{wording.percent(rate['rate'])} {wording.interval(rate)}".split()) in shown
    assert all(file["sha256"] in shown for file in audit["model"]["files"])


def test_the_same_folder_gives_the_same_bytes(folder):
    before = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == before
    assert not list(folder.glob("*.part"))


def test_a_missing_picture_is_named(tmp_path):
    audit_example.write_audit(tmp_path, 2)
    (tmp_path / "images" / "000001-2.png").unlink()
    with pytest.raises(InputError, match=r"images/000001-2\.png"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_memory_does_not_grow_with_the_report(tmp_path, monkeypatch):
    audit_example.write_audit(tmp_path, 200)
    monkeypatch.setattr(thumbnails.Thumbnails, "encode", lambda self, file, mode, edge: "data:," + file * 800)
    tracemalloc.start()
    size = write_report(tmp_path).stat().st_size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 15_000_000
    assert peak < size / 5


@pytest.mark.parametrize(
    ("prompts", "seeds", "wanted"), [(100, 4, (192, 4)), (1500, 4, (128, 4)), (3000, 8, (96, 5)), (10**5, 8, (96, 1))]
)
def test_thumbnails_fit_into_a_file_that_opens(prompts, seeds, wanted):
    assert thumbnails.plan(seeds, images=2 * prompts * seeds, others=prompts) == wanted


def test_a_stated_rate_in_the_card(folder):
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    card = model_card(audit)
    assert "an estimated 25.0 % are memorized (95 % interval 15.0 to 35.0 %), 25.0 % are extracted (" in card.replace(
        "\u00a0", " "
    )
    assert f"| all prompts | {ROWS} | 25.0 % (15.0 to 35.0 %) |" in card.replace("\u00a0", " ")
    assert "| flagged, with attention\\_mask |" in card
    assert "infring" not in card


def test_a_refused_rate_is_not_in_the_card(tmp_path):
    card = model_card(audit_example.write_audit(tmp_path, 4, refused=True))
    assert "no headline: 4 prompts were sampled, and 96 are needed" in card
    assert "| all prompts |" not in card


def test_what_a_search_found_has_no_rate(tmp_path):
    audit = audit_example.write_audit(tmp_path, 4)
    audit["rates"] = [rate | {"headline": False, "needed": None} for rate in audit["rates"]]
    audit["verdict"] |= {"sentence": "The search found 3 prompts.", "refused": "They are no sample of any log."}
    assert "The search found 3 prompts. No rate is stated" in model_card(audit)
    assert "|" not in model_card(audit)
    (tmp_path / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    shown = Page(write_report(tmp_path).read_text(encoding="utf-8")).shown
    assert "shares of what was found" in shown
    assert (
        "the log" not in shown.partition("Rates")[2].partition("Does attention_mask help?")[0].partition("Share of")[2]
    )


def test_an_adversarial_test_is_shown_with_and_without_a_mitigation(tmp_path):
    entry = {"prompts": 3, "steps": 50, "bypassed": False, "not_finite": 0}
    entry |= {"retriggered": 1 / 3, "retriggered_low": 0.008, "retriggered_high": 0.91}
    entry |= {"control": None, "control_low": 0.0, "control_high": 1.0}
    audit = audit_example.write_audit(tmp_path, 2) | {"adversarial": {"none": entry}}
    changed = {"name": "random_words", "settings": {}, "rates": [], "change": []}
    both = {"none": entry, "random_words": entry | {"bypassed": True}}
    for mitigation, adversarial in ((None, {"none": entry}), (changed, both)):
        audit |= {"mitigation": mitigation, "adversarial": adversarial}
        (tmp_path / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
        made = Page(write_report(tmp_path).read_text(encoding="utf-8"))
        assert {"id": "adversarial", "aria-labelledby": "adversarial-title"} in [own for _, own in made.elements]
        assert "33.3\u00a0%" in made.shown.partition("Extracted prompts whose picture came back")[2]
        assert ("random_words, bypassed" in made.shown) is (mitigation is not None)
        assert ("No prompt was flagged" in made.shown) is (mitigation is not None)


def test_a_card_holds_no_markup_of_others(folder):
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    audit["prompts"]["log"] |= {"source": "a|b # title <img src=x>", "provenance": "[x](y) `z`"}
    card = model_card(audit)
    assert r"a\|b \# title \<img src=x\>, \[x\](y) \`z\`" in card
    assert len(re.findall("^#", card, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.0241, "2.4 %"), (0.00042, "0.042 %"), (0.9996, "100.0 %"), (None, "–")],
)
def test_percent(share, text):
    assert wording.percent(share).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.44, "9.4 s"), (59.7, "1 min 0 s"), (521, "8 min 41 s"), (7290, "2 h 1 min")]
)
def test_seconds(seconds, text):
    assert wording.seconds(seconds) == text


def test_axis_ends_at_a_round_share():
    assert axis([{"high": 0.036}, {"high": 0.044}]).ticks == (0, 0.025, 0.05)
    assert axis([{"high": 0.036}]).at(0.025) == "50.00%"
    assert axis([]).end == 1
