"""The audit's report in a browser: Debian's Chromium, without a network, through Playwright."""

import shutil

import audit_example
import pytest
import report_pages
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from memattn_jax.report.html import write_report

ROWS = 30  # more than a page of the gallery
# without these, Chromium asks its maker for updates and suggestions
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}
expect.set_options(timeout=60_000)  # of slow machines
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (400, 1400)]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=shutil.which("chromium") or "chromium", args=QUIET)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    audit_example.write_audit(folder, ROWS)
    return write_report(folder).as_uri()


@pytest.fixture(scope="module")
def other_pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = [report_pages.write_detection(folder / "detect"), report_pages.write_images(folder / "generate")]
    return [path.as_uri() for path in made + report_pages.write_evaluations(folder)]


@pytest.fixture
def page(browser, report, other_pages, request):
    """The report, opened in one colour scheme and width. What it says and asks for must be nothing."""
    scheme, width = getattr(request, "param", ("light", 1400))
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda made: asked.append(made.url))
    opened.goto(report)
    yield opened
    assert said == []
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} <= {report, *other_pages}
    context.close()


def shown(page) -> list[str]:
    return page.locator("#gallery h3").all_inner_texts()


def faults(page, *rules: str) -> list[str]:
    """What axe finds, of any weight; only by these rules, where some are named."""
    options: dict = {"resultTypes": ["violations"], "preload": False, "iframes": False}  # a third of its time
    options |= {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    found = Axe().run(page, options=options).response
    assert len(found["passes"]) >= (len(rules) or 20)
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found["violations"]]


@pytest.mark.parametrize("page", VIEWS, indirect=True)
def test_page_fits_is_accessible_and_shows_where_a_token_looks(page, request):
    view = request.node.callspec.params["page"]
    rules = {("light", 1400): [()], ("dark", 400): [("color-contrast",)]}.get(view, [])  # axe takes a second
    assert [faults(page, *each) for each in rules] == [[] for _ in rules]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[view[0]]
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    page.locator("#gallery button").first.click()
    assert page.evaluate("(it => it.scrollWidth - it.clientWidth)(document.querySelector('#prompt'))") == 0
    heat = page.locator(".stack img").nth(1)
    expect(heat).to_be_hidden()
    page.locator(".token").nth(1).hover()
    expect(heat).to_be_visible()
    expect(page.locator(".read")).to_contain_text("of the attention")
    assert [faults(page, *each) for each in rules] == [[] for _ in rules]


def test_prompts_are_sorted_filtered_and_searched_and_the_card_is_copied(page):
    expect(page.locator("#count")).to_have_text(f"{ROWS // 2} of {ROWS} prompts")  # those that are flagged
    page.locator("#show").select_option("all")
    expect(page.locator("#count")).to_have_text(f"{ROWS} of {ROWS} prompts; 1 to 24 shown")
    page.locator("#next").click()
    expect(page.locator("#gallery > li")).to_have_count(ROWS - 24)
    page.locator("#sort").select_option("row")
    assert shown(page)[0] == audit_example.PROMPTS[0]
    page.locator("#sort").select_option("score-entropy_e")
    scores = [
        float(text.split(" ")[0]) for text in page.locator("#gallery .scores > div:first-child dd").all_inner_texts()
    ]
    assert scores == sorted(scores, reverse=True)
    page.locator("#direction").click()
    assert page.locator("#gallery .scores > div:first-child dd").first.inner_text() != f"{scores[0]} (3.1)"
    page.locator("#kind").select_option(label="verbatim")
    page.locator("#search").fill("STRAWBERRY solmok")
    assert set(shown(page)) == {"a strawberry for zanfir solmok"}
    page.locator("#search").fill("nothing like it")
    expect(page.locator("#count")).to_have_text(f"0 of {ROWS} prompts")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#card-text").text_content()


def opened_row(page):
    """By the page's address, of which the browser's own tells; Playwright's copy of it may come later."""
    return page.evaluate("location.hash").removeprefix("#prompt-")


def test_a_prompt_opens_from_the_keyboard_and_from_its_address_and_is_only_text(page, report):
    first = page.locator("#gallery button").first
    first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#prompt")
    expect(dialog).to_be_visible()
    row = opened_row(page)
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token").nth(1)).to_be_focused()
    expect(page.locator(".heat")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator(".token").nth(1)).to_have_attribute("aria-pressed", "true")
    page.locator("#prompt .forward").click()
    assert opened_row(page) != row
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#gallery button").nth(1)).to_be_focused()
    page.locator("#strongest button").nth(2).click()
    page.keyboard.press("Escape")
    expect(page.locator("#strongest button").nth(2)).to_be_focused()

    def opened(row):
        page.goto(f"{report}#prompt-{row}")
        expect(page.locator("#prompt-title")).to_have_text(f"Row {row}")
        return page.locator("#prompt .text")

    assert opened(1).inner_text() == audit_example.PROMPTS[1]
    assert opened(2).inner_text() == audit_example.PROMPTS[2]
    assert opened(3).inner_text() == "مرحبا بالعالم, right to left U+202EgnirtsU+202C"
    assert page.evaluate("getComputedStyle(document.querySelector('#prompt .text')).direction") == "rtl"
    assert len(opened(4).inner_text()) < 2000
    page.get_by_role("button", name="Show all 10000 characters").click()
    assert page.locator("#prompt .text").text_content() == audit_example.PROMPTS[4]
    assert opened(5).inner_text() == "a NUL U+0000 inside, and U+001B[31mcontrolU+0007 characters"
    assert opened(6).inner_text() == "empty prompt"
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1


@pytest.mark.parametrize("other", ["location.hash = '#prompt-1'", "document.querySelector('#gallery button').click()"])
def test_a_prompt_opens_while_another_is_being_closed(page, report, other):
    page.goto(f"{report}#prompt-2")
    expect(page.locator("#prompt-title")).to_have_text("Row 2")
    page.evaluate(f"document.querySelector('#prompt').close(); {other}")  # before the event of the closing
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#prompt-title")).not_to_have_text("Row 2")
    assert opened_row(page) == page.locator("#prompt-title").text_content().removeprefix("Row ")


@pytest.mark.parametrize("page", [("dark", 400)], indirect=True)
def test_pages_of_other_commands(page, other_pages):
    for address in other_pages:
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert faults(page) == []  # that of mitigations, whose parts are those of detectors
    for address, standing_out in zip(other_pages[:2], (["a"], []), strict=True):  # of a token that is there twice
        page.goto(address)
        page.locator("#gallery button").first.click()
        page.locator(".token").nth(1).hover()
        expect(page.locator(".token.blamed")).to_have_text(standing_out)
        expect(page.locator(".read")).to_contain_text("of the attention")
        assert faults(page, "color-contrast") == []
