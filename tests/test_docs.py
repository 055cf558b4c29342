"""The docs are true: the names in them exist, and the examples run."""

import ast
import asyncio
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command

import fetchfleet as public
from fetchfleet import Fetch, Fleet, Outcome, Reason, Result, Timings
from fetchfleet.jobs.contract.fetch import decode_fetch
from fetchfleet.jobs.contract.result import decode_result
from fetchfleet.worker.cli.app import app
from fetchfleet.worker.inspect.fleet_status import FleetStatus
from fetchfleet.worker.observability.log import Event
from fetchfleet.worker.observability.log_schemas import CONSTANTS, EVENT_NAMES, NAMES, renaming
from fetchfleet.worker.observability.registry.event_fields import COMMON
from fetchfleet.worker.observability.registry.event_schemas import EVENTS
from fetchfleet.worker.observability.registry.event_schemas import fields_of as registered_fields
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.settings import ENVIRONMENT
from fetchfleet.worker.util import aio
from tests.support.redis import cli_arguments
from tests.support.waiting import wait_until
from tests.support.workers import fetchfleet, workers
from tools.origin.behaviours import ok, status
from tools.origin.server import Origin

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md"), *DOCS.glob("*.md")])
SOURCES = sorted(
    path
    for folder in ("jobs", "worker", "tools", "tests", "examples", "fetchfleet", "scripts", "ops")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".lua", ".sh", ".yml", ".yaml", ".conf", ".acl"}
)
ROOMS = ("jobs", "worker", "examples", "scripts", "tests", "ops")

_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
_ANCHOR = re.compile(r"\]\(([^)#]*)#([^)]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:\./)?(?:[\w.-]+/)*[\w.-]+\.(?:py|lua|md|toml|lock)|(?:\./)?(?:[\w.-]+/)+")
_SOURCE_PATH = re.compile(r"(?<![\w/.-])(?:[a-z_0-9]+/)+[\w.-]*\w\.(?:py|lua|md|toml|acl)\b")
_BRACES = re.compile(r"`([\w./]*)\{([\w,]+)\}(\.py)`")
_TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
_TEST_PATH = re.compile(r"\btests/[\w/]+(?:\.py)?")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,]+)\])?")


def name_of(page: Path) -> str:
    """Return the path within the project."""
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path, language: str) -> list[str]:
    """Return the page's code blocks in this language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """Links and paths in code style are real, from the page's folder or the project's."""
    text = page.read_text()
    named = set(_LINK.findall(text))
    named |= {code for code in _CODE.findall(text) if _PATH.fullmatch(code)}
    for before, names, after in _BRACES.findall(text):
        named |= {f"{before}{name}{after}" for name in names.split(",")}
    for block in _FENCED.findall(text):
        named |= set(_TEST_PATH.findall(block))
    missing = {path for path in named if not ((page.parent / path).exists() or (ROOT / path).exists())}

    assert set() == missing


def test_every_path_that_a_source_file_names_exists() -> None:
    """Paths in comments, docstrings and code are real, from the root, a top folder or the file's own."""
    missing = set()
    for source in SOURCES:
        bases = (ROOT, ROOT / "jobs", ROOT / "worker", ROOT / "tests", source.parent)
        for path in _SOURCE_PATH.findall(source.read_text()):
            if not any((base / path).exists() for base in bases):
                missing.add(f"{name_of(source)}: {path}")

    assert set() == missing


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the page's headings."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_heading_finds_it(page: Path) -> None:
    """A link with a fragment names a heading of its page."""
    links = _ANCHOR.findall(page.read_text())
    missing = [
        f"{path}#{anchor}"
        for path, anchor in links
        if anchor not in anchors_of((page.parent / path) if path else page)
    ]

    assert [] == missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_script_that_a_page_names_can_be_run(page: Path) -> None:
    """`./scripts/x` exists and is executable."""
    scripts = set(re.findall(r"\./(scripts/\w+)", page.read_text()))
    dead = {script for script in scripts if not shutil.which(ROOT / script)}

    assert set() == dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """Each test ID names a function of its file."""
    named = _TEST.findall(page.read_text())
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]

    assert [] == missing


def test_the_guarantees_page_names_tests() -> None:
    """The page names at least 100 tests; the test above checks that they exist."""
    assert len(_TEST.findall((DOCS / "guarantees.md").read_text())) >= 100


def test_every_dependency_has_a_row() -> None:
    """The table of the development page and pyproject.toml name the same packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    required = set()
    for requirement in [item for wanted in lists for item in wanted]:
        name, extras = _REQUIREMENT.match(requirement).groups()  # type: ignore[union-attr]
        required |= {name, *(extras or "").split(",")} - {""}
    section = (DOCS / "development.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    rows = {name for cell in cells for name in re.sub(r" \([^)]*\)", "", cell).split(", ")}

    assert required == rows - {"package", "---"}


async def test_the_readmes_producer_runs(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test's Redis and host replace those in the README."""
    (program,) = fenced(ROOT / "README.md", "python")
    async with Origin.serving("127.0.0.181", ok(b"body")) as origin:
        program = program.replace("redis://localhost:6379", redis_url).replace("10_000", "10")
        program = program.replace("https://example.com", origin.url("").rstrip("/"))
        program = program.replace("asyncio.run(main())", "")
        scope: dict[str, object] = {}
        exec(compile(ast.parse(program), "README.md", "exec"), scope)
        with workers(1, redis_url, tmp_path):
            await asyncio.wait_for(scope["main"](), 60)  # type: ignore[operator]

    assert 10 == capsys.readouterr().out.count("stored http://127.0.0.181")


API = DOCS / "api.md"
RESULTS = DOCS / "results.md"


def main_of(
    program: str, redis_url: str, origin: Origin, **scope: Any
) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return the program's main, with the test's Redis and host in place of its own."""
    program = program.replace("redis://localhost:6379", redis_url)
    program = program.replace("https://example.com", origin.url("").rstrip("/"))
    program = program.replace("asyncio.run(main())", "")
    exec(compile(ast.parse(program), "README.md", "exec"), scope)
    return scope["main"]  # type: ignore[no-any-return]


async def test_the_python_of_the_api_and_result_pages_runs(redis_url: str, tmp_path: Path) -> None:
    """The clients, plain arq, a reader that continues from a position, and two consumer groups."""
    printed: list[tuple[Any, ...]] = []
    read: list[tuple[Any, ...]] = []
    heard: list[str] = []
    plainly: list[str] = []
    client, script, arq, patient, _ = fenced(API, "python")
    reader, plain, _, each, group = fenced(RESULTS, "python")
    async with Origin.serving("127.0.0.182", ok(b"body")) as origin:
        programs = [
            main_of(text, redis_url, origin, print=lambda *words: printed.append(words))
            for text in (client, arq, patient)
        ]
        programs.append(main_of(reader, redis_url, origin, print=lambda *words: read.append(words)))
        handed: list[tuple[Any, ...]] = []
        consumers = [
            main_of(group, redis_url, origin, print=heard.append),
            main_of(each, redis_url, origin, print=lambda *words: handed.append(words)),
        ]
        with workers(1, redis_url, tmp_path):
            tasks = [asyncio.create_task(consume()) for consume in consumers]
            for program in programs:
                await asyncio.wait_for(program(), 60)
            await wait_until(lambda: len(heard) >= 6 and len(handed) >= 6, "the results of all")
            plain = plain.replace("redis://localhost:6379", redis_url)
            scope = {"print": plainly.append}
            await asyncio.to_thread(exec, compile(plain, "results.md", "exec"), scope)
            await aio.end(*tasks)
            script = script.replace("redis://localhost:6379", redis_url)
            script = script.replace("https://example.com", origin.url().rstrip("/"))
            scripted: list[tuple[Any, ...]] = []
            scope = {"print": lambda *words: scripted.append(words)}
            await asyncio.to_thread(exec, compile(script, "api.md", "exec"), scope)
        wanted = [origin.url("/a.bin"), origin.url("/b.bin")]

    assert sorted(wanted) == sorted(words[1] for words in printed[:2])
    assert "fedcba9876543210" == printed[2][0]["batch"]
    assert sorted(("stored", of) for of in wanted) == sorted(scripted)
    assert sorted(wanted * 3) == sorted(heard)
    assert sorted((of, "stored") for of in wanted * 3) == sorted(handed)
    assert sorted(wanted) == sorted(plainly)
    assert sorted(wanted) == sorted(words[0] for words in read)


async def test_the_dead_letter_program_of_the_api_page_runs(redis_url: str, tmp_path: Path) -> None:
    """A failed fetch is listed and enqueued again, and the producer follows it."""
    printed: list[tuple[Any, ...]] = []
    heard: list[tuple[Any, ...]] = []
    follow = fenced(RESULTS, "python")[2]
    async with Origin.serving("127.0.0.184", status(404)) as origin:
        retry = main_of(
            fenced(API, "python")[4], redis_url, origin, print=lambda *words: printed.append(words)
        )
        with workers(1, redis_url, tmp_path):
            async with Fleet(redis_url) as fleet:
                await (await fleet.submit([origin.url("/gone")], batch_id="0123456789abcdef")).wait()
                await asyncio.wait_for(retry(), 60)
                await fleet.batch(printed[1][2][0]).wait()
                again = main_of(follow, redis_url, origin, print=lambda *words: heard.append(words))
                await asyncio.wait_for(again(), 60)

    assert [("0123456789abcdef-00000000", "ended as", "failed")] == heard
    assert "http_status" == printed[0][1]
    assert (1, "enqueued again as") == printed[1][:2]


async def test_the_redis_cli_of_the_api_page_runs(redis_url: str, tmp_path: Path) -> None:
    """Three messages are pushed, and the results of the one with a batch ID are read."""
    if not shutil.which("redis-cli"):
        pytest.skip("redis-cli is not installed")
    block, _ = fenced(API, "bash")
    async with Origin.serving("127.0.0.183", ok(b"body")) as origin:
        block = block.replace("redis-cli", f"redis-cli {' '.join(cli_arguments(redis_url))}")
        block = block.replace("https://example.com", origin.url("").rstrip("/"))
        *pushes, reads = block.splitlines()
        for push in pushes:
            await shell(push)
        with workers(1, redis_url, tmp_path):
            result = await wait_until(lambda: shell(reads), "the result")
            await wait_until(lambda: len(origin.requests) >= 3, "the requests")
            await wait_until((tmp_path / "bodies" / "b.bin").exists, "the file")

    assert '"outcome":"stored"' in result


async def shell(command: str) -> str:
    """Run the command; return its output."""
    ended = await asyncio.to_thread(
        subprocess.run, command, shell=True, capture_output=True, text=True, check=True, timeout=30
    )
    return ended.stdout.strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_policy_in_the_docs_is_valid(page: Path) -> None:
    """TOML blocks parse, and every key is known."""
    for block in fenced(page, "toml"):
        parse_policy(block)


def test_the_policy_page_shows_every_key_with_its_default() -> None:
    """One block of the page has every key, each with the default of the code."""
    keys = LanePolicy.__struct_fields__
    blocks = fenced(DOCS / "policy.md", "toml")
    [complete] = [block for block in blocks if all(f"\n{key} =" in block for key in keys)]

    assert LanePolicy() == parse_policy(complete).default


def test_the_policy_page_has_a_row_for_every_key() -> None:
    """The table has the range and meaning of each key."""
    text = (DOCS / "policy.md").read_text()

    assert [] == [key for key in LanePolicy.__struct_fields__ if f"\n| `{key}` |" not in text]


def test_the_api_page_has_every_field_of_a_fetch() -> None:
    """Each is in code style."""
    text = API.read_text()

    assert [] == [word for word in Fetch.__struct_fields__ if f"`{word}`" not in text]


def test_every_error_that_the_api_page_names_is_public() -> None:
    """All but arq's can be imported from the package."""
    named = set(re.findall(r"`(\w+Error)`", API.read_text())) - {"SerializationError"}

    assert len(named) >= 8
    assert set() == named - set(public.__all__)


def test_the_results_page_has_every_field_outcome_and_reason() -> None:
    """Including the timings."""
    text = RESULTS.read_text()
    words = [*Result.__struct_fields__, *Timings.__struct_fields__, *Outcome, *Reason]

    assert [] == [word for word in words if f"`{word}`" not in text]


def test_the_json_of_the_docs_is_a_fetch_and_a_result() -> None:
    """The examples decode, and the result has every field but the one of a failure."""
    [fetch], [result] = fenced(API, "json"), fenced(RESULTS, "json")

    decode_fetch(fetch)
    decode_result(result.encode())
    assert [name for name in Result.__struct_fields__ if name != "note"] == list(json.loads(result))


def test_the_configuration_page_has_every_variable() -> None:
    """Each is in code style."""
    text = (DOCS / "configuration.md").read_text()

    assert [] == [variable for variable in ENVIRONMENT.values() if f"`{variable}`" not in text]


def commands_of(page: Path) -> Iterator[list[str]]:
    """Return the words of each fetchfleet command in code of the page, up to an operator of the shell."""
    blocks = "\n".join(_FENCED.findall(page.read_text()))
    for code in (*_CODE.findall(_FENCED.sub("", page.read_text())), *blocks.splitlines()):
        if match := re.match(r"\s*(?:\S+/)?fetchfleet ([a-z-][^|&<>#;)]*)", code):
            yield match[1].split()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    """Commands, subcommands and options are those of the command line."""
    unknown = []
    for words in commands_of(page):
        command: Any = get_command(app)
        options = {"--help"}
        for word in words:
            is_option = word.startswith("-") and len(word) > 1
            if not is_option and hasattr(command, "list_commands"):
                command = command.get_command(None, word)
            options |= {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
            if command is None or (is_option and word.partition("=")[0] not in options):
                unknown.append(words)
                break

    assert [] == unknown


@pytest.mark.parametrize("command", ["run", "submit", "worker"])
def test_every_flag_that_a_page_names_is_known_to_the_command(command: str) -> None:
    """Flags in the pages are flags of the command."""
    printed = fetchfleet(command, "--help").stdout
    text = "".join(page.read_text() for page in PAGES)
    lines = [line for line in text.splitlines() if f"fetchfleet {command} " in line]
    flags = {flag for line in lines for flag in re.findall(r"--[a-z-]+", line)}

    assert set() == {flag for flag in flags if flag not in printed}


def test_the_page_of_the_log_has_each_event_with_its_level_and_fields() -> None:
    """They are those of the registry. `trace_id`, which any line of a fetch may have, is not repeated."""
    text = (DOCS / "logs.md").read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \| .* \| (.*) ?\|$", text, re.MULTILINE)
    found = {event: (level, re.findall(r"`(\w+)`", fields)) for event, level, fields in rows}
    fields = {
        event: [] if event is Event.WORKER_HEARTBEAT else [*registered_fields(event)] for event in EVENTS
    }
    left_out = {*COMMON, "trace_id"}

    assert EVENTS.keys() == set(Event)
    assert found == {
        event.value: (EVENTS[event].level, [name for name in fields[event] if name not in left_out])
        for event in Event
    }


def test_the_page_of_the_log_explains_each_field() -> None:
    """A field of the heartbeat has its row in the section on heartbeats, any other one in that on fields."""
    text = (DOCS / "logs.md").read_text()
    section, *_, heartbeat = text.partition("\n## Fields\n")[2].split("\n## ")
    others = {
        name for event in Event if event is not Event.WORKER_HEARTBEAT for name in registered_fields(event)
    }

    assert rows_of(section) == sorted(others - {*COMMON})
    assert set(rows_of(heartbeat)) == registered_fields(Event.WORKER_HEARTBEAT).keys() - {*COMMON}


def test_the_page_of_the_log_has_the_names_of_other_schemas() -> None:
    """Each row has the names that the table of the code has for a field, or for a field of an event."""
    text = (DOCS / "logs.md").read_text().partition("\n## Field names of OpenTelemetry and ECS\n")[2]
    rows = re.findall(
        r"^\| `(\w+)`(?: of `([a-z_.]+)`)? \| (.*) \| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE
    )
    found = {(event, field): names for field, event, *names in rows}
    samples = {"ms": 1.0, "outcome": "stored", "peer": "a:1", "total_ms": 1.0}

    def shown(schema: str, event: str, field: str) -> str:
        renamed, of_event = (
            renaming(schema)(line)
            for line in ({"event": event, field: samples.get(field, "x")}, {"event": event})
        )
        names = renamed if field == "event" else renamed.keys() - of_event.keys()
        return ", ".join(f"`{name}`" for name in sorted(names) if name not in CONSTANTS[schema])

    keys = [("", field) for field in NAMES] + [
        (event, field) for event, own in EVENT_NAMES.items() for field in own
    ]
    assert found == {
        (event, field): [shown(schema, event, field) for schema in ("otel", "ecs")] for event, field in keys
    }


def rows_of(section: str) -> list[str]:
    """Return the names in the first column of tables."""
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def logged() -> Iterator[tuple[str, str]]:
    """Return each event with the fields that calls of the log give it."""
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="debug" | "info" | "warning" | "error"),
                    args=[ast.Attribute(value=ast.Name(id="Event"), attr=name), *_],
                ):
                    yield from ((Event[name].value, given.arg) for given in node.keywords if given.arg)


def test_the_registry_has_every_logged_field() -> None:
    """Each event has the fields that calls of the log give it."""
    found = list(logged())

    assert len(found) >= 80
    assert [] == [(event, field) for event, field in found if field not in registered_fields(Event(event))]


def fields_of(struct: Any) -> set[str]:
    """Return the fields of a struct and of its nested structs."""
    names = set(struct.__struct_fields__)
    for of in get_type_hints(struct).values():
        for part in (of, *get_args(of)):
            names |= fields_of(part) if hasattr(part, "__struct_fields__") else set()
    return names


def test_the_operations_page_has_every_field_of_the_status() -> None:
    """The Status section covers the fleet, its workers, lanes and ingress paths."""
    section = (DOCS / "operations.md").read_text().partition("\n## Status\n")[2].partition("\n## ")[0]

    assert fields_of(FleetStatus) >= {"workers", "in_flight", "waiting", "backlog"}
    assert [] == sorted(name for name in fields_of(FleetStatus) if f"`{name}`" not in section)


def test_only_liveness_restarts_a_worker() -> None:
    """The image and the Kubernetes manifest probe with commands, and the manifest has readiness too."""
    image = (ROOT / "ops" / "Dockerfile").read_text()
    manifest = (ROOT / "ops" / "kubernetes" / "worker.yaml").read_text()
    probes = dict(re.findall(r"(\w+Probe):\n\s+exec: {command: \[(.*?)\]}", manifest))
    printed = fetchfleet("health", "--help").stdout

    assert 'CMD ["fetchfleet", "health", "--live"]' in image
    assert probes == {
        "livenessProbe": "fetchfleet, health, --live",
        "readinessProbe": "fetchfleet, health, --ready",
    }
    assert "--live" in printed
    assert "--ready" in printed


def test_the_readme_stays_short() -> None:
    """It has at most 700 words, with tables and the picture."""
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_every_log_event_is_used() -> None:
    """The closed list of log events has no dead entry."""
    code = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))

    assert [] == [event.name for event in Event if f"Event.{event.name}" not in code]
