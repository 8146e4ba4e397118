"""Hook of `mkdocs build`: a page of the site for each notebook under examples/, as it is kept, without running it."""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[1] / "examples"


def on_files(files: Files, config: Any) -> Files:
    """Adds examples/NAME.md, and an image file for each of its figures."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        page, images = to_markdown(path.stem, json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page))
        for name, image in images.items():
            files.append(File.generated(config, f"examples/{name}", content=image))
    return files


def to_markdown(stem: str, notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the images that it shows: {file name: PNG}."""
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(images)}.png"
                images[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Figure of the cell above]({name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", images
