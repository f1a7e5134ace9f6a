"""Every command in README.md, CONTRIBUTING.md and docs/ is run: as written, in a scratch checkout whose recipes are
tiny.

A command is a line of a fenced `sh` block (or one that begins with `$ ` in a `console` block). What takes minutes is
run as far as it proves that the command is right: `make TARGET` by make's own dry run, `python bench/…` by its
`--help`.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmforge.pipeline import run_stages
from lmforge.recipe import load_recipe
from tests.conftest import lmforge, tiny_recipe, tiny_texts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BIN = Path(sys.executable).parent


def commands(page: Path) -> list[str]:
    """The commands of a page, in order, comments and continuation lines resolved; usage lines are none."""
    lines = []
    for kind, block in re.findall(r"^ *```(sh|console)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.strip().removeprefix("$ ") if kind == "sh" or line.strip().startswith("$ ") else ""
            text = re.sub(r"\s+#.*$", "", text).strip()
            if text and not text.startswith("#") and "[OPTIONS]" not in text:
                lines.append(text)
    return lines


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout after `make demo`, with every recipe made tiny, beside some texts of one's own."""
    root = tmp_path_factory.mktemp("base") / "checkout"
    (root / "recipes").mkdir(parents=True)
    for name in ("bench", "src", "Makefile", "pyproject.toml", "constraints.txt"):
        (root / name).symlink_to(ROOT / name)
    texts = tiny_texts(root / "my-texts")
    for recipe in (ROOT / "recipes").glob("*.toml"):
        tiny = tiny_recipe(root / "recipes" / recipe.name, texts, Path("runs") / recipe.stem)
        tiny.write_text(tiny.read_text().replace('name = "tiny"', f'name = "{recipe.stem}"'))
    run_stages(load_recipe(root / "recipes" / "laptop.toml"), root / "runs" / "laptop")
    return root


@pytest.fixture
def checkout(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own for each page; the working directory."""
    root = tmp_path / "checkout"
    shutil.copytree(base, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """Two threads beside another busy test are ten times slower than one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    yield
    os.sched_setaffinity(0, before)


def run(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, shell=True, cwd=root, env=environment, capture_output=True, text=True, timeout=240)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(command: str, root: Path, then: list[str]) -> None:
    """Start a server, wait until it answers, run the commands that talk to it, stop it."""
    port = free_port()
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT / 'src'}"}
    process = subprocess.Popen(
        f"exec {command} --port {port}", shell=True, cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)  # until it listens
        for line in then:
            result = run(line.replace(":8000", f":{port}"), root)
            assert result.returncode == 0, f"{line}\n{result.stderr}"
            assert "error" not in result.stdout[:40], result.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_there_are_commands() -> None:
    assert [command for command in commands(ROOT / "README.md") if command.startswith("make")][:2] == [
        "make demo",
        "make test",
    ]


@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in ALL if command.startswith("make")))
def test_make_targets_exist(command: str) -> None:
    assert (
        subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    )


@pytest.mark.parametrize(
    "command", dict.fromkeys(m[1] for _, c in ALL if (m := re.match(r"\S*python3? -m (bench\..*)", c)))
)
def test_benchmarks_explain_themselves(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", shlex.split(command)[0], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout, f"{command}: --help measures instead of telling what it would do"
    unknown = [
        word for word in shlex.split(command)[1:] if word.startswith("--") and word.split("=")[0] not in result.stdout
    ]
    assert not unknown, f"{command}: no such option {unknown}"


# run by the tests above, with the server, or not commands of ours
ELSEWHERE = ("make", "curl", ". ", "git clone", "cd ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(
    page: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the page's order, so that each finds what those before it made."""
    for command in commands(page):
        if command.startswith(ELSEWHERE) or re.match(r"\S*python3? -m bench\.", command):
            continue
        if command.startswith("lmforge serve"):
            served(command, checkout, [c for c in commands(page) if c.startswith("curl")])
        elif command.startswith("lmforge ") and not set(command) & set("|<>&"):
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/quit\n"))
            status, _, err = lmforge(capsys, monkeypatch, *shlex.split(command)[1:])
            assert status == 0, f"{command}\n{err[-2000:]}"
        else:
            result = run(command, checkout)
            assert result.returncode == 0, f"{command}\n{result.stderr[-2000:]}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target} has no heading #{anchor}"


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    }
    assert not [page for page in PAGES if page.name not in ("README.md",) and page.resolve() not in linked]


def test_the_commands_page_is_what_the_program_says() -> None:
    command = [sys.executable, "-m", "typer", "lmforge.cli", "utils", "docs", "--name", "lmforge", "--title"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([*command, "The commands"], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    page = ROOT / "docs" / "reference" / "cli.md"
    assert page.read_text().strip() == result.stdout.strip(), "docs/reference/cli.md differs; run: make docs"


def test_the_tour_has_every_folder_and_no_other() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text().split("## A tour of the house")[1].split("## Rules")[0]
    table = [line.split("|")[1] for line in tour.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    package = ROOT / "src" / "lmforge"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert {name for name in named if name.endswith("/")} == folders
    assert {name for name in named if name.endswith(".py")} == {path.name for path in package.glob("[a-z]*.py")}
    assert set(re.findall(r"`(bench/\w+/)`", tour)) == {
        f"bench/{path.name}/" for path in (ROOT / "bench").iterdir() if path.is_dir() and path.name != "__pycache__"
    }


def test_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 95
