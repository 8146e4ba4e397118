"""Samples of every group on one labelled sheet, for a person to look at."""

import textwrap
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo_data.examples import DemoData
from demo_data.groups import TOP

COLUMNS = 8
PICTURE, LABEL, HEADING, MARGIN = 128, 72, 34, 8  # pixels
PAPER, INK = "white", "black"
Cell = tuple[np.ndarray, str]


def contact_sheet(data: DemoData) -> Image.Image:
    """Draws the sheet: a heading and one or two rows of pictures, twice their size, for each group."""
    sections = [(heading, list(cells)) for heading, cells in samples(data)]
    row = PICTURE + LABEL
    rows = sum(-(-len(cells) // COLUMNS) for _, cells in sections)
    height = rows * row + len(sections) * HEADING + MARGIN
    sheet = Image.new("RGB", (COLUMNS * (PICTURE + MARGIN) + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(11)
    top = 0
    for heading, cells in sections:
        draw.text((MARGIN, top + MARGIN), heading, INK, large)
        top += HEADING
        for number, (picture, caption) in enumerate(cells):
            left = MARGIN + number % COLUMNS * (PICTURE + MARGIN)
            line = top + number // COLUMNS * row
            sheet.paste(Image.fromarray(picture).resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (left, line))
            label = "\n".join(textwrap.wrap(caption, PICTURE // 6))
            draw.multiline_text((left, line + PICTURE + 2), label, INK, small, spacing=1)
        top += -(-len(cells) // COLUMNS) * row
    return sheet


def samples(data: DemoData) -> Iterator[tuple[str, list[Cell]]]:
    """Headings, each with its pictures and captions."""
    fixed = data.fixed_pictures
    memorized, control = data.groups.prompts("memorized"), data.groups.prompts("control")
    spread = [7 * number % len(memorized) for number in range(2 * COLUMNS)]  # all shapes of captions, both halves
    yield (
        "memorized: always this picture",
        [(data.memorized_pictures[place], memorized[place].text) for place in spread],
    )
    yield (
        "control: a new picture each time (four of each)",
        [
            (data.fresh_picture(control[place], number), control[place].text)
            for place in spread[3::4]
            for number in range(4)
        ],
    )
    for group, heading in (
        ("unseen", "unseen: what a picture could be; never trained on"),
        ("decoys", "decoys: a memorized caption's name, other objects; never trained on"),
    ):
        prompts = data.groups.prompts(group)
        yield heading, [(data.fresh_picture(prompts[place], 0), prompts[place].text) for place in spread]
    for times, captions in data.groups.ladder.items():
        some = captions[:: len(captions) // COLUMNS]
        yield f"ladder: shown {times} times for {TOP} of a memorized one", [(fixed[c], c.text) for c in some]
    captions = tuple(template.caption(word) for template in data.groups.templates for word in template.prompts)
    yield (
        "templates: an object that training shows, and one that it does not",
        [(data.template_picture(caption), caption.text) for caption in captions[: 2 * COLUMNS]],
    )
    yield "training examples 0 to 23, as they come", [data.example(index)[:2] for index in range(3 * COLUMNS)]
