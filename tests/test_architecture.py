"""The arrows between the rooms, and the sizes that keep them readable."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("jobs", "worker", "examples") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

PURE = (
    "jobs/contract/body_checks.py",
    "jobs/contract/field_checks.py",
    "jobs/contract/conditions.py",
    "jobs/contract/trace_context.py",
    "jobs/contract/messages.py",
    "jobs/contract/entry.py",
    "jobs/contract/lanes.py",
    "jobs/contract/fetch_list.py",
    "jobs/contract/model.py",
    "jobs/contract/ids.py",
    "jobs/contract/urls.py",
    "worker/util/backoff.py",
    "worker/scheduler/balance.py",
    "worker/fetch/rules/trace_context.py",
    "worker/fetch/rules/crashes.py",
    "worker/fetch/rules/decide.py",
    "worker/body/decoders.py",
    "worker/body/digests.py",
    "worker/fetch/rules/stale_fallback.py",
    "worker/gate/breaker.py",
    "worker/gate/retry_budget.py",
    "worker/gate/gate.py",
    "worker/gate/concurrency.py",
    "worker/gate/quota.py",
    "worker/gate/retry_after.py",
    "worker/gate/state.py",
    "worker/policy/egress.py",
    "worker/http/http2/frames.py",
    "worker/http/http2/headers.py",
    "worker/http/net/dns_cache.py",
    "worker/fetch/rules/redirects.py",
    "worker/http/wire.py",
    "worker/body/min_rate.py",
    "worker/observability/percentiles.py",
    "worker/policy/file.py",
    "worker/policy/model.py",
    "worker/scheduler/probe.py",
    "worker/body/json_lines.py",
    "worker/observability/redact.py",
    "worker/fetch/rules/range_rules.py",
    "worker/gate/robots_rules.py",
    "worker/sink/disk_space.py",
    "worker/fetch/rules/validators.py",
    "worker/sink/warc/record_format.py",
)
IMPURE = {"aiofiles", "arq", "asyncio", "httpcore2", "httpx", "os", "random", "redis", "socket", "time"}

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 45
ARQS_WORKER_IS_KNOWN_TO = {"worker/runtime/arq_worker.py", "worker/main.py"}


def name_of(path: Path) -> str:
    """The file's path in the project."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("name", PURE)
def test_what_decides_imports_nothing_that_acts(name: str) -> None:
    """No clock, chance, network or disk is within reach of a decision."""
    roots = {module.partition(".")[0] for module in imports(ROOT / name)}

    assert set() == roots & IMPURE


@pytest.mark.parametrize("name", PURE)
def test_what_decides_leans_only_on_what_decides(name: str) -> None:
    """The arrow points to the pure part and never out of it."""
    ours = {module for module in imports(ROOT / name) if module.startswith(("jobs", "worker"))}
    pure = {path.removesuffix(".py").replace("/", ".") for path in PURE}

    assert set() == ours - pure - {"jobs", "fetchfleet.jobs.errors", "worker", "fetchfleet.worker.gate"}


@pytest.mark.parametrize("room", ["jobs", "examples"])
def test_producers_know_nothing_of_the_runtime(room: str) -> None:
    """No module of the contract or of the examples imports worker/."""
    knowing = {
        name_of(path)
        for path in (ROOT / room).rglob("*.py")
        if any(module.startswith("worker") for module in imports(path))
    }

    assert set() == knowing


def test_arqs_worker_is_known_to_two_files() -> None:
    """A move to another queue is a matter of those two and jobs/notify.py."""
    knowing = {
        name_of(path)
        for path in SOURCES
        if imports(path) & {"arq", "arq.worker"} and name_of(path).startswith("worker")
    }

    assert ARQS_WORKER_IS_KNOWN_TO >= knowing


def test_redis_keys_are_spelt_in_one_file() -> None:
    """`ff:` stands in jobs/keys.py and nowhere else."""
    spelling = {name_of(path) for path in SOURCES if '"ff:' in path.read_text()}

    assert {"jobs/keys.py"} == spelling


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    """A ratchet: a file has at most 320 lines, a function 45, its contract included."""
    long = {
        node.name for node in functions(path) if (node.end_lineno or 0) - node.lineno > MAX_FUNCTION_LINES
    }

    assert set() == long
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_every_test_says_in_a_sentence_what_it_shows() -> None:
    """A test without a docstring is a riddle to whoever breaks it."""
    silent = [
        f"{name_of(path)}::{node.name}"
        for path in TESTS
        for node in functions(path)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert [] == silent


def test_importing_the_contract_brings_no_runtime_along() -> None:
    """Producers pay neither for arq nor for httpx nor for the command line."""
    program = (
        "import jobs, sys; print(sorted({'arq', 'httpx', 'httpcore2', 'typer', 'rich'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]" == said.stdout.strip()
