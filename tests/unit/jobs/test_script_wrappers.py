"""Each Lua script is called by one typed function of jobs/scripts, and by no other."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted(path.stem for path in (ROOT / "jobs" / "lua").glob("*.lua") if path.stem != "_common")
WRAPPERS = sorted((ROOT / "jobs" / "scripts").glob("*.py"))
MODULES = sorted(path for package in ("jobs", "worker") for path in (ROOT / package).rglob("*.py"))
MAY_RUN_CALLS = {*WRAPPERS, ROOT / "worker" / "redis_support" / "script_batches.py"}
CALL_TYPE = "Call"
"""The type of a prepared call, which a caller may name without running it."""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the functions of a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def scripts_of(function: ast.AST) -> list[str]:
    """Return the scripts that a function names in a call of `runner.run` or in a `Call`."""
    names = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            place = {"Call": 0, "runner.run": 1}.get(called)
            if place is not None:
                names.append(ast.literal_eval(node.args[place]))
    return names


def wrappers() -> dict[str, list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]]:
    """Return the functions that call each script."""
    found = defaultdict(list)
    for path in WRAPPERS:
        for function in functions(path) if path.stem != "runner" else ():
            for script in scripts_of(function):
                found[script].append((path, function))
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_one_public_wrapper_with_named_parameters(script: str) -> None:
    """Its parameters are lanes, tokens and IDs. The Lua file names the wrapper."""
    [(path, function)] = wrappers()[script]
    parameters = [*function.args.args, *function.args.kwonlyargs]
    header = (ROOT / "jobs" / "lua" / f"{script}.lua").read_text()

    assert not function.name.startswith("_")
    assert {"keys", "args", "argv", "names"}.isdisjoint(parameter.arg for parameter in parameters)
    assert f"-- Called by {path.relative_to(ROOT)}, {function.name}.\n" in header


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_documents_its_interface(script: str) -> None:
    """Each Lua file describes its KEYS and its reply, if the reply has a meaning."""
    header = (ROOT / "jobs" / "lua" / f"{script}.lua").read_text()

    assert re.search("^-- KEYS: ", header, re.MULTILINE)
    assert re.search("^-- Returns ", header, re.MULTILINE) or script == "seal"


def test_no_wrapper_calls_an_unknown_script() -> None:
    """Every script that a wrapper names is a file."""
    assert set(SCRIPTS) == wrappers().keys()


def test_no_other_module_runs_a_script() -> None:
    """Only the wrappers, and the worker's batching of their calls, use the runner."""
    offenders = []
    for path in MODULES:
        if path in MAY_RUN_CALLS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                of_runner = {name for name in names if name.startswith("fetchfleet.jobs.scripts.runner")}
                if of_runner - {f"fetchfleet.jobs.scripts.runner.{CALL_TYPE}"}:
                    offenders.append((path, node.lineno))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == CALL_TYPE:
                offenders.append((path, node.lineno))

    assert [] == offenders
