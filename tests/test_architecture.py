"""The structure of the packages: directions, cycles, purity, names and sizes."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "worker")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = sorted([*MODULES, *(ROOT / "fetchfleet").glob("*.py"), *(ROOT / "examples").rglob("*.py")])
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
FOLDERS = sorted({path.parent for path in [*MODULES, *TOOLS]})

IMPURE = {"aiofiles", "arq", "asyncio", "httpx", "os", "random", "redis", "socket", "time"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILES_PER_FOLDER = 12
MAX_SINGLE_USE_SHARE = 0.12
ARQ_WORKER_IS_KNOWN_TO = {"worker/runtime/arq_worker.py", "worker/main.py"}


def name_of(path: Path) -> str:
    """Return the path within the project."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """Return the dotted name by which the package is imported."""
    return "fetchfleet." + name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of the file."""
    return ast.parse(path.read_text())


BY_MODULE = {module_of(path): path for path in MODULES}


@cache
def imports(path: Path) -> set[str]:
    """Return every module that the file imports, at whatever depth; `from p import m` counts as p.m."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (
                names & BY_MODULE.keys()
                if names <= BY_MODULE.keys()
                else {node.module} | (names & BY_MODULE.keys())
            )
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every function of the file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def declared_tests(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the tests of the file, in classes too. Their tree is not kept: they are many."""
    body = ast.parse(path.read_text()).body
    for node in [*body, *(inner for of in body if isinstance(of, ast.ClassDef) for inner in of.body)]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


@cache
def is_pure(path: Path) -> bool:
    """Return whether the module's docstring declares it pure."""
    return "Pure." in (ast.get_docstring(tree_of(path)) or "")


def pure_modules() -> list[Path]:
    """Return the modules that declare themselves pure."""
    return [path for path in MODULES if is_pure(path) and path.name != "__init__.py"]


def test_pure_modules_import_nothing_that_acts() -> None:
    """A module marked "Pure." reaches no clock, randomness, network or disk."""
    acting = {
        name_of(path): found
        for path in pure_modules()
        if (found := {module.partition(".")[0] for module in imports(path)} & IMPURE)
    }

    assert {} == acting


def test_pure_modules_import_only_pure_modules() -> None:
    """A module marked "Pure." imports of this project only pure modules, errors and packages."""
    impure = [
        (name_of(path), module)
        for path in pure_modules()
        for module in imports(path) & BY_MODULE.keys()
        if not is_pure(BY_MODULE[module]) and BY_MODULE[module].name not in {"__init__.py", "errors.py"}
    ]

    assert [] == impure


def test_decisions_are_marked_pure() -> None:
    """The rooms that decide hold only pure modules."""
    deciding = [path for path in MODULES if name_of(path).startswith(("worker/gate/", "worker/fetch/rules/"))]

    assert [] == [name_of(path) for path in deciding if path.name != "__init__.py" and not is_pure(path)]
    assert len(pure_modules()) >= 40


def test_no_import_cycles() -> None:
    """The modules form a directed acyclic graph, imports inside functions included."""
    graph = {module: imports(path) & BY_MODULE.keys() - {module} for module, path in BY_MODULE.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_type_checking_imports() -> None:
    """All imports are made at run time; none is under TYPE_CHECKING."""
    hiding = [name_of(path) for path in [*SOURCES, *TOOLS] if "TYPE_CHECKING" in path.read_text()]

    assert [] == hiding


def test_class_names_are_unique() -> None:
    """No two classes or type aliases of the package share a name."""
    places = defaultdict(list)
    for path in MODULES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))

    assert {} == {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("room", ["jobs", "examples", "fetchfleet"])
def test_producers_know_nothing_of_the_runtime(room: str) -> None:
    """No module of the contract, the public API or the examples imports the worker."""
    knowing = {
        name_of(path)
        for path in SOURCES
        if name_of(path).startswith(f"{room}/")
        and any(module.startswith("fetchfleet.worker") for module in imports(path))
    }

    assert set() == knowing


def test_the_arq_worker_is_known_to_two_files() -> None:
    """Replacing arq would touch those two files and jobs/notify.py."""
    knowing = {
        name_of(path)
        for path in SOURCES
        if imports(path) & {"arq", "arq.worker"} and name_of(path).startswith("worker")
    }

    assert ARQ_WORKER_IS_KNOWN_TO >= knowing


def test_redis_keys_are_spelled_in_one_file() -> None:
    """The prefix `ff:` occurs in jobs/keys.py only."""
    spelling = {name_of(path) for path in SOURCES if '"ff:' in path.read_text()}

    assert {"jobs/keys.py"} == spelling


def test_a_lane_is_changed_by_its_own_room_only() -> None:
    """Outside worker/lanes no statement assigns to an attribute of a lane, or to an item of one."""
    changing = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                changed = target.value if isinstance(target, ast.Subscript) else target
                if isinstance(changed, ast.Attribute):
                    owner = ast.unparse(changed.value).rpartition(".")[2].lstrip("_")
                    if owner == "lane" and "worker/lanes" not in name_of(path):
                        changing.append(f"{name_of(path)}:{node.lineno}")

    assert [] == changing


def test_the_run_of_a_fetch_is_read_at_once() -> None:
    """The module that tells it has at most 250 lines."""
    assert len((ROOT / "worker/fetch/run.py").read_text().splitlines()) <= 250


def test_files_and_functions_stay_short() -> None:
    """A module has at most 400 lines, a function 60, its docstring included."""
    files = [*SOURCES, *TOOLS]
    long = [
        f"{name_of(path)}:{node.name}"
        for path in files
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]

    assert [] == long
    assert [] == [name_of(path) for path in files if len(path.read_text().splitlines()) > MAX_FILE_LINES]


def test_rooms_stay_small_and_have_a_docstring() -> None:
    """A room has at most 12 files; its docstring says what belongs in it."""
    full = [name_of(folder) for folder in FOLDERS if len(list(folder.glob("*.py"))) > MAX_FILES_PER_FOLDER]

    assert [] == full
    assert [] == [
        name_of(folder) for folder in FOLDERS if not ast.get_docstring(tree_of(folder / "__init__.py"))
    ]


def test_few_private_functions_are_used_once() -> None:
    """At most 12 % of the functions are private and named once beyond their definition."""
    total = single = 0
    for path in MODULES:
        text = path.read_text()
        words = Counter(re.findall(r"\w+", text))
        for node in functions(path):
            total += 1
            private = node.name.startswith("_") and not node.name.startswith("__")
            single += private and words[node.name] == 2

    assert single / total <= MAX_SINGLE_USE_SHARE


def test_every_test_has_a_docstring() -> None:
    """Tests in classes have one too."""
    silent = [
        f"{name_of(path)}::{node.name}"
        for path in TESTS
        for node in declared_tests(path)
        if not ast.get_docstring(node)
    ]

    assert [] == silent


def printed_by(program: str) -> str:
    """Return the output of a program in a new process."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_importing_the_public_api_imports_no_runtime() -> None:
    """Producers import neither arq nor httpx nor the command line."""
    program = (
        "import fetchfleet, sys;"
        "print(sorted({'arq', 'httpx', 'typer', 'rich', 'fetchfleet.worker'} & {*sys.modules}))"
    )

    assert "[]" == printed_by(program)


def test_a_worker_imports_only_the_libraries_that_it_needs() -> None:
    """The direct engine needs no httpx, h2 waits for the first host with HTTP/2, and spans are off.

    structlog and httpx import rich and pygments if they find them, for tracebacks and for a command line.
    """
    program = (
        "import sys; from importlib import import_module;"
        "slow = {'httpx', 'h2', 'opentelemetry', 'click', 'rich', 'pygments'};"
        "loaded = lambda name: import_module(name) and sorted(slow & {*sys.modules});"
        "print(loaded('fetchfleet.worker.local.prestart'), loaded('fetchfleet.worker.http.httpx_engine'))"
    )

    assert "[] ['httpx']" == printed_by(program)


def test_a_run_imports_its_display_and_arq_only_while_redis_starts() -> None:
    """Until then each import delays the start of Redis, which takes 40 ms without the command."""
    program = (
        "import sys, fetchfleet.worker.cli.run, fetchfleet.worker.local.list_downloads;"
        "from fetchfleet.worker.local.run import import_later_modules;"
        "loaded = lambda: sorted({'rich', 'arq'} & {*sys.modules});"
        "before = loaded(); import_later_modules(); print(before, loaded())"
    )

    assert "[] ['arq', 'rich']" == printed_by(program)
