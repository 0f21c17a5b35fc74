"""README and docs: their Python runs as printed, their commands are ones that exist, and what they point to is there."""

import argparse
import ast
import importlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import NamedTuple

import pytest

from jax_brcd.runtime.xla import CPU_FUSION
from jax_brcd.stages.configuration import create_config

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).resolve().parents[1]
README, METHOD, EXTENDING = ROOT / "README.md", ROOT / "docs" / "method.md", ROOT / "docs" / "extending.md"
PACKAGE = ROOT / "jax_brcd"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("jax_brcd", "torch_ref", "benchmarks", "parity_tests")
RUN, SHOWN = ("python", "bash"), ("text", "bibtex")
SECONDS = 600
# The run that the blocks call runs/my-run: a default run, but for how long it trains, and how much of the student
TINY = ["--teacher-weights", "random", "--teacher-epochs", "1", "--epochs", "1", "--no-train-backbone", "--views", "2",
        "--out", "runs/my-run"]


class Block(NamedTuple):
    """A fenced block: the word after its fence, and its lines."""

    line: int  # of its first line, from 1
    language: str
    text: str


def blocks(page):
    found, opened = [], None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = number, line.strip().removeprefix("```")
        else:
            lines = page.read_text().splitlines()[opened[0] : number - 1]
            found.append(Block(opened[0] + 1, opened[1], "\n".join(lines)))
            opened = None
    assert opened is None, f"{page}:{opened[0]}: a block without an end"
    return found


def prose(page):
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page):
    """What stands in backticks in a page's prose."""
    return re.findall(r"`([^`]+)`", prose(page))


def commands(page):
    """The words of every command that a page shows, in a block or in its prose."""
    lines = [line for block in blocks(page) if block.language == "bash"
             for line in block.text.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in spans(page) if span.startswith(("python ", "pip ", "pytest "))]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words for words in parts if words]


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(page):
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE)


class Parsed(Exception):
    """A command has read its command line: its parser, and what it read."""


def parsed(module, words):
    """The parser of `python -m module` and what it reads of `words`; what the command does next is not done."""
    read = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser, args=None, namespace=None):
        known, unknown = read(parser, args, namespace)
        assert not unknown, f"{module} has no {unknown[0]}"
        raise Parsed(parser, known)

    program = importlib.import_module(module)
    if hasattr(program, "__path__"):  # a package, which Python runs by this file
        program = importlib.import_module(f"{module}.__main__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        with pytest.raises(Parsed) as stop:
            program.main(words)
    return stop.value.args


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that holds a tiny run at runs/my-run."""
    place = tmp_path_factory.mktemp("docs")
    as_users_do = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": CPU_FUSION}
    python(place, "-m", "jax_brcd.distill", *TINY, **as_users_do)
    return place


def python(place, *arguments, root=ROOT, **variables):
    """Runs Python in `place`, with the packages of `root` and its caches there; fails with what it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(place / "cache"), "HOME": str(place), **variables}
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True,
                          timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page):
    for block in blocks(page):
        assert block.language in (*RUN, *SHOWN), f"{page.name}:{block.line}: '{block.language}'; one of {RUN + SHOWN}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))],
                         ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_its_first_block_to_its_last(workplace, page):
    lines = []
    for block in blocks(page):
        if block.language == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    script = workplace / f"{page.stem}.py"
    script.write_text("\n".join(lines))  # with the page's own line numbers
    before = set(os.listdir(ROOT))
    python(workplace, script.name)
    left = {name for name in set(os.listdir(ROOT)) - before if name != "__pycache__" and not name.startswith(".")}
    assert not left, f"{page.name} leaves {left} in the checkout"


def new_files():
    """The toys by the path of the file that they would be: their first line."""
    return {block.text.partition("\n")[0].removeprefix("# "): block.text for block in blocks(EXTENDING)
            if block.text.startswith("# ")}


def test_the_toys_are_those_that_are_tested():
    """Each class and function of a toy stands so in one of the tests of extensions, but for what registers it."""
    tested = {}
    for path in pathlib.Path(__file__).parent.glob("test_extending_*.py"):
        tested |= {node.name: ast.dump(ast.Module(node.body, [])) for node in ast.parse(path.read_text()).body
                   if hasattr(node, "name")}
    for text in new_files().values():
        for node in ast.parse(text).body:
            if hasattr(node, "name"):
                assert ast.dump(ast.Module(node.body, [])) == tested[node.name], node.name


def test_each_toy_is_part_of_the_package_by_one_file_and_one_line_elsewhere(tmp_path):
    """As the table of docs/extending.md says, done to a copy of the package."""
    toys = new_files()
    rows = re.findall(r"^\| an? .* \| `(.*)` \| `(.*)` \| `(.*)` \|$", EXTENDING.read_text(), re.MULTILINE)
    assert len(rows) == 5
    shutil.copytree(PACKAGE, tmp_path / "jax_brcd", ignore=shutil.ignore_patterns("__pycache__"))
    for file, line, elsewhere in rows:
        assert not (tmp_path / file).exists()
        (tmp_path / file).write_text(toys[file])
        with open(tmp_path / elsewhere, "a") as init:
            init.write(f"{line}\n")
    python(tmp_path, "-c", "from jax_brcd.stages.configuration import create_config\n"
           "from jax_brcd.export import EXPORTERS\nfrom jax_brcd.search import STORES\n"
           "create_config(method='warm_logits', warm_share=0.2, teacher_objective='balanced', student='toy')\n"
           "EXPORTERS['arrays'], STORES['dictionary']", root=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one_that_its_program_accepts(page):
    for words in commands(page):
        if words[:2] == ["python", "-m"]:
            _, given = parsed(words[2], words[3:])
            if words[2].endswith(".distill"):
                create_config(**vars(given))  # checks the values
        elif words[:2] == ["pip", "install"]:
            check_installed(words[2:])
        elif words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words[1:]), words
        else:
            raise AssertionError(f"{page.name}: no test knows how to read: {shlex.join(words)}")


def check_installed(words):
    """Whether the package and the extras that pip is given are this project's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [word for word in words if word != "-e"]
    name, extras = re.fullmatch(r"([\w.]+)(?:\[([\w,]+)\])?", wanted).groups()
    assert name == ("." if "-e" in words else project["name"])
    assert set((extras or "").split(",")) <= {"", *project["optional-dependencies"]}


def test_every_option_that_the_pages_name_exists():
    shown = {tuple(words[2:]) for page in PAGES for words in commands(page) if words[:2] == ["python", "-m"]}
    known = {name for module, *words in shown for name in parsed(module, words)[0]._option_string_actions}
    for page in PAGES:
        for span in spans(page):
            named = re.findall(r"(?<!\S)--[a-z][a-z-]*", span)
            assert set(named) <= known, f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_and_figure_of_a_page_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in map(slug, headings(file)), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_source_file_that_a_page_names_is_there(page):
    folders = [span for span in spans(page) if re.fullmatch(r"[\w/]+/", span)] if page.stem == "map" else []
    for name in [*folders, *(span for span in spans(page) if re.fullmatch(r"[\w/]+\.py", span))]:
        assert name in new_files() or any((place / name).exists() for place in (ROOT, PACKAGE)), f"{page.name}: {name}"


def test_imports_go_up_the_table_of_the_map():
    lines = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "map.md").read_text(), re.MULTILINE)
    places = {name: number for number, line in enumerate(lines) for name in re.findall(r"`(.+?)`", line)}

    def place(path):
        """The line of the table that a file of the package is of: its own, or its room's."""
        return next(places[name] for name in (path.as_posix(), f"{path.parts[0]}/") if name in places)

    for path in PACKAGE.rglob("*.py"):
        for file in imported(ast.parse(path.read_text())):
            assert place(file) <= place(path.relative_to(PACKAGE)), f"{path}: {file}"


def imported(tree):
    """The files of the package that a file imports, anywhere in it, relative to the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [[alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [[f"{node.module}.{alias.name}", node.module] for alias in node.names]
        else:
            continue
        for choices in names:  # a module of a room, or what the room's own file offers
            parts = [pathlib.Path(*name.split(".")[1:]) for name in choices if name.startswith("jax_brcd.")]
            files = [file for part in parts for file in (part.with_suffix(".py"), part / "__init__.py")
                     if (PACKAGE / file).exists()]
            yield from files[:1]


def test_the_readme_is_short_and_every_page_is_linked_from_it():
    text = README.read_text()
    assert len(text.splitlines()) < 150
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in text


def mentions():
    """(file, what stands before a mention of the method's page, what follows it), each on one line, of all packages."""
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        text = re.sub(r"\s+(?:# )?", " ", path.read_text()) if path != pathlib.Path(__file__).resolve() else ""
        for mention in re.finditer(r"\bmethod\.md", text):
            yield path.relative_to(ROOT), text[max(0, mention.start() - 200) : mention.start()], text[mention.end() :]


def test_every_section_of_the_method_that_the_code_cites_is_there():
    """As `docs/method.md, "Notation"` or `"Notation" in docs/method.md`, one or several joined by "and"."""
    names, known, cited = r'"[^"]+"(?: and "[^"]+")*', headings(METHOD), 0
    for path, before, after in mentions():
        assert before.endswith("docs/"), f"{path}: method.md without its folder"
        found = re.match(rf",? ({names})", after) or re.search(rf"({names}) in docs/$", before)
        for section in re.findall(r'"([^"]+)"', found[1]) if found else ():
            assert section in known, f"{path}: {section}"
            cited += 1
    assert cited >= 20


def test_the_last_table_of_the_method_is_that_of_the_variants():
    """Docstrings call it so."""
    last = METHOD.read_text().rpartition("\n## ")[2]
    assert last.startswith("Where the released code differs\n") and "| `released` | `corrected` |" in last
