"""The package's shape: imports point one way, files and signatures stay small."""

import ast
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import memattn_jax

PACKAGE = Path(memattn_jax.__file__).parent
# From the lowest layer up: a file may import from its own layer's earlier names and from what is below.
LAYERS = (
    ("text", "errors", "typed", "settings", "keys", "registries", "pytree", "entropy", "heatmaps", "ssim", "pictures"),
    ("storage", "prompts", "interceptors"),
    ("schedulers", "models", "sharding"),
    ("checkpoints",),
    ("diffusion",),
    ("detectors",),
    ("mitigations",),
    ("copies", "evaluation"),
    ("pipeline",),
    ("demo", "runs", "search"),
    ("training",),
    ("report",),
    ("audit",),
    ("commands",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
VERBS = {"convert", "detect", "evaluate", "finetune", "generate", "visualize", "__main__"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, for type checking alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memattn_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {"memattn_jax"}


def part_of(name: str) -> str:
    """The part of the package that a module belongs to; a package's `__main__` is a verb beside the others."""
    return "__main__" if name.endswith(".__main__") else name.split(".")[1]


GRAPH = {name: imports(path) for name, path in MODULES.items() if name != "memattn_jax"}


def test_no_import_cycle():
    """Between files, a package's `__init__` being one of them; imports for type checking count."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_imports_point_down():
    wrong = []
    for name, targets in GRAPH.items():
        own = part_of(name)
        if own in VERBS:
            continue
        wrong += [f"{name} imports {to}" for to in targets if LEVEL[part_of(to)] > LEVEL[own]]
    assert wrong == []
    assert {part_of(name) for name in GRAPH} - VERBS == LEVEL.keys()


def test_packages_have_no_cycle():
    packages: dict[str, set[str]] = {}
    for name, targets in GRAPH.items():
        own = part_of(name)
        packages.setdefault(own, set()).update({part_of(to) for to in targets} - {own})
    TopologicalSorter(packages).prepare()


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert max(lengths.values()) <= 300, max(lengths, key=lengths.__getitem__)
    assert statistics.median(lengths.values()) < 120
    assert lengths["memattn_jax"] <= 50


def test_functions_take_few_arguments():
    many = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([argument for argument in own if argument.arg not in ("self", "cls")]) > 8:
                    many.append(f"{name}.{node.name}")
    assert many == []
