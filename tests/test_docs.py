"""The texts: where links lead, whether what they name is there, and how long the front page is."""

import contextlib
import importlib
import io
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from clean_lm import cli
from tests.support import ROOT

pytestmark = pytest.mark.docs
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + [path for folder in ("docs", "demo", "export", "js", "bench") for path in (ROOT / folder).rglob("*.md")]
    + list((ROOT / "tests" / "golden").rglob("*.md"))
)
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links(page):
    """Every relative link leads to a file, and its anchor to a heading."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


# A path in backticks, from the root of the repository or from the page's folder
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.*-]+\.(?:py|js|mjs|md|json|toml|yml|wav))`")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "demo/README.md", "docs/*.md"])
def test_named_files_exist(name):
    pages = {page: PATH.findall(text(page)) for page in ROOT.glob(name)}
    missing = [path for page, paths in pages.items() for path in paths if not named(page, path)]
    assert missing == []


def named(page: Path, path: str) -> bool:
    """Whether there is such a file, or will be: commands write build/, and NAME stands for a name."""
    return path.startswith("build/") or "NAME" in path or any(any(f.glob(path)) for f in (ROOT, page.parent))


def test_the_front_page_is_short():
    assert len(text(ROOT / "README.md").split()) < 700


@each_page
def test_nothing_is_installed_from_a_registry(page):
    """Neither package is published yet: a text says to install from the checkout, its wheel or its tarball."""
    assert re.findall(r"(?:pip|npm) (?:install|i) [^\n`]*\bclean[-_]lm(?![\w./-]*(?:\.whl|\.tgz))", text(page)) == []


def test_coverage_names_tests():
    """Every name is part of a test's name, or a file of tests."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    tests = [name for file in files for name in re.findall(r"^ *def (test_\w+)", text(file), re.M)]
    names = re.findall(r"`(\w*[a-z]_\w+)`", text(ROOT / "docs" / "coverage.md").split("\n## ")[0])
    known = [*tests, *(file.stem for file in files)]
    assert len(names) > 30
    code = {"generate_continuation", "generate_with_chroma", "max_duration", "extend_stride", "cfg_coef_beta"}
    assert [name for name in names if name not in code and not any(name in test for test in known)] == []


@cache
def options(script: str) -> set[str]:
    """Those in a program's --help. All programs share this process: most of the time of one is importing torch."""
    name = script.removeprefix("-m ").removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit) as ended:
            module.main()
    assert ended.value.code == 0, f"{script} --help: exit status {ended.value.code}"
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", said.getvalue()))


SCRIPT = re.compile(
    r"python ((?:export|weights|examples)/\w+\.py|-m (?:bench(?:\.\w+)?|demo\.train(?:\.\w+)?))\b([^\n`#]*)"
)
OPTION = re.compile(r"(?<=\s)--?[a-z][\w-]*")


def test_options_of_programs_exist():
    """In every command that the texts show."""
    shown = [(page, script, line) for page in PAGES for script, line in SCRIPT.findall(text(page))]
    assert len(shown) > 15
    unknown = [
        f"{page.relative_to(ROOT)}: {script} {option}"
        for page, script, line in shown
        for option in OPTION.findall(line)
        if option not in options(script)
    ]
    assert unknown == []


def test_options_of_the_table_exist():
    """docs/convert.md lists bundle.py's options, all of them."""
    listed = set(re.findall(r"^\| `(--[\w-]+)", text(ROOT / "docs" / "convert.md"), re.M))
    assert listed == options("export/bundle.py") - {"-h", "--help"}


def test_options_of_clean_lm_exist(capsys):
    """In every clean-lm command that the texts show."""
    shown = re.findall(r"^ *clean-lm (\w+)([^\n#]*)", "\n".join(map(text, PAGES)), re.M)
    assert len(shown) > 8
    for command, line in shown:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        known = re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out)
        assert set(OPTION.findall(line)) - set(known) == set(), f"clean-lm {command}{line}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")], ids=lambda p: p.name)
def test_python_in_texts_compiles(page):
    for block in re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S):
        compile(block, str(page), "exec")
