"""The house stands: imports point only upstream, no cycles, the network knows nothing of processes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lmforge"
BENCH = Path(__file__).parents[1] / "bench"
FLOORS = [
    "",
    "recipe",
    "corpus",
    "tokens",
    "kernels",
    "model",
    "parallel",
    "formats",
    "generate",
    "plan",
    "train",
    "compress",
    "evaluate",
    "serve",
    "report",
]
ROOF = {"pipeline", "cli", "cli_models", "cli_evaluate", "cli_plan"}  # alone know every stage
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {module_of(file) for file in FILES}
    return {name for name in found if name in modules and name != "lmforge"}


def floor(module: str) -> int:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ROOF:
        return len(FLOORS)
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else 0


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_upstream(path: Path) -> None:
    here = module_of(path)
    wrong = sorted(name for name in imports(path) if floor(name) > floor(here))
    assert not wrong, f"{here} imports from below: {wrong}"


def bench_imports() -> dict[str, set[str]]:
    """Module of bench/ → modules of bench/ that it imports."""
    files = {".".join(path.relative_to(BENCH.parent).with_suffix("").parts): path for path in BENCH.rglob("*.py")}
    graph = {}
    for module, path in files.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {name for node in nodes for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
        graph[module] = {str(name) for name in names if name in files}
    return graph


def test_no_import_cycle() -> None:
    graph = {module_of(path): imports(path) for path in FILES} | bench_imports()
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' → '.join((*trail[trail.index(module) :], module))}"
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done


@pytest.mark.parametrize("path", sorted((SOURCE / "model").glob("*.py")), ids=module_of)
def test_the_network_knows_one_device(path: Path) -> None:
    assert "distributed" not in path.read_text()


def test_parts_of_the_corpus_import_in_one_direction() -> None:
    order = ["sources", "images", "clean", "overlap", "measure", "synthesize"]
    assert {path.name for path in (SOURCE / "corpus").iterdir() if (path / "__init__.py").exists()} == set(order)
    for path in sorted((SOURCE / "corpus").glob("*/*.py")):
        engine = {f"lmforge.corpus.{name}" for name in ("build", "steps", "executors")}
        parts = [name.split(".")[2] for name in imports(path) if name.startswith("lmforge.corpus.")]
        later = [part for part in parts if part in order and order.index(part) > order.index(path.parent.name)]
        assert not later, f"{path.relative_to(SOURCE)} imports from {later}"
        assert not engine & imports(path), f"{path.relative_to(SOURCE)} imports the engine"


def test_every_folder_is_a_floor_and_no_file_is_a_drawer() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders - ROOF == set(FLOORS) - {""}
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]


def test_tests_mirror_the_source() -> None:
    missing = [
        module_of(path)
        for path in FILES
        if path.parent != SOURCE
        and path.stem != "__init__"
        and not (Path(__file__).parent / path.parent.relative_to(SOURCE) / f"test_{path.stem}.py").exists()
    ]
    assert not missing, f"no test file for: {missing}"


MOST_LINES, MOST_FUNCTION_LINES, MOST_ATTRIBUTES = 400, 60, 15


def too_long(path: Path) -> list[str]:
    """What of a file is longer than the house allows, and has no comment `# long: why` above it."""
    text = path.read_text()
    lines = text.split("\n")
    wrong = [path.name] if len(lines) - 1 > MOST_LINES and "# long:" not in text[:2000] else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES and "# long:" not in lines[first - 2]:
                wrong.append(f"{path.name}: {node.name}")
            names = {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute)
                and isinstance(each.ctx, ast.Store)
                and ast.unparse(each.value) == "self"
            }
            if node.name == "__init__" and len(names) > MOST_ATTRIBUTES:
                wrong.append(f"{path.name}: {len(names)} attributes")
    return wrong


@pytest.mark.parametrize("path", [*FILES, *sorted(BENCH.rglob("*.py"))], ids=lambda path: path.stem)
def test_files_functions_and_classes_are_of_a_size_to_be_read(path: Path) -> None:
    assert not too_long(path)
