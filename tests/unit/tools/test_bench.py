"""The figures of the benchmark."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench import bodies
from tools.bench.contenders.straight_line import LAYERS
from tools.bench.peers import PEERS
from tools.bench.profiler.subsystems import OTHERS, ROOMS, room_of, room_of_thread
from tools.bench.report import layers, rates, summary, targets
from tools.bench.stats import MB, TARGETS, Run, another_fits, is_own, of_files, of_rates, with_ratios

rates_per_s = st.floats(1, 1e4)


def test_the_figure_is_the_median_and_the_peak_the_largest() -> None:
    """One slow round has no effect, one large peak does. A program is all its processes."""
    runs = [Run(2.0, [3 * MB], 0.002), Run(4.0, [5 * MB, 2 * MB], 0.001), Run(90.0, [6 * MB], 9.0)]

    found = of_files(runs, 10, 100 * MB)

    assert (2.5, 25.0) == (found["per_s"], found["mb_per_s"])
    assert (4.0, 2.0, 90.0) == (found["took_s"], found["least_s"], found["most_s"])
    assert (7.0, 6.0) == (found["peak_rss_mb"], found["largest_rss_mb"])
    assert 200.0 == found["cpu_us"]


def test_rates_are_medians_too() -> None:
    """They have their range."""
    assert {"per_s": 3.0, "least_per_s": 1.0, "most_per_s": 50.0} == of_rates([50.0, 1.0, 3.0])


@given(rates_per_s, rates_per_s, rates_per_s)
def test_a_ratio_compares_fetchfleet_with_each_other_program(
    own: float, other_way: float, peer: float
) -> None:
    """Each way to run fetchfleet is compared with the others' programs, not with its own other ways."""
    measured = {"fetchfleet": own, "fetchfleet, 2 workers": other_way, "wget2": peer}

    found = with_ratios({name: {"per_s": rate} for name, rate in measured.items()}, "per_s")

    assert {"per_s": own, "times": {"wget2": round(own / peer, 2)}} == found["fetchfleet"]
    assert {"wget2": round(other_way / peer, 2)} == found["fetchfleet, 2 workers"]["times"]
    assert {"per_s": peer, "fetchfleet_is_times": round(own / peer, 2)} == found["wget2"]


@given(st.lists(st.floats(0.1, 100), min_size=1), st.floats(1, 1000))
def test_no_round_starts_that_may_not_end_in_time(round_took_s: list[float], budget_s: float) -> None:
    """A further round is expected to take as long as the longest one."""
    fits = another_fits(round_took_s, budget_s)

    assert fits == (sum(round_took_s) + max(round_took_s) <= budget_s)


def test_every_program_has_a_unique_name_and_fetchfleet_is_first() -> None:
    """Ratios use the names. httpx and files need no extra."""
    names = [peer.name for peer in PEERS]

    assert len(set(names)) == len(names)
    assert "fetchfleet" == names[0]
    assert PEERS[0].installed
    assert {"fetchfleet", "fetchfleet, 2 workers"} < {name for name in names if is_own(name)}
    assert not is_own("wget2")


def test_a_missing_or_altered_body_is_found(tmp_path: Path) -> None:
    """Bytes of equal number may differ. State files of fetchfleet are not bodies."""
    served = bodies.make(tmp_path / "served", 3, 1000)
    out = tmp_path / "out"
    (out / ".fetchfleet").mkdir(parents=True)
    (out / ".fetchfleet" / "run.json").write_text("{}")
    for path in (tmp_path / "served").iterdir():
        (out / path.name).write_bytes(path.read_bytes())

    assert "" == bodies.in_files(out, served)
    (out / "0.bin").write_bytes(bytes(1000))
    assert "1 of 3 bodies are missing, 1 differ" == bodies.in_files(out, served)
    (out / "0.bin").unlink()
    assert "1 of 3 bodies are missing, 0 differ" == bodies.in_files(out, served)


def test_segments_are_counted_by_their_responses(tmp_path: Path) -> None:
    """A missing record is reported."""
    record = b"WARC/1.1\r\nWARC-Type: response\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(record * 2 + b"WARC/1.1\r\nWARC-Type: request\r\n\r\n")
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(record))

    assert "" == bodies.in_segments(tmp_path, Counter({1: 1, 2: 2}))
    assert "3 of 4 bodies are stored" == bodies.in_segments(tmp_path, Counter({1: 4}))


@pytest.mark.parametrize(
    ("stack", "room"),
    [
        (["/usr/lib/ssl.py", "/x/httpx/_client.py", "/p/worker/fetch/run.py"], "engine"),
        (["/p/worker/sink/files/buffered_body.py", "/p/worker/fetch/run.py"], "sink"),
        (["/x/structlog/_output.py", "/p/worker/lanes/log_events.py", "/p/worker/fetch/run.py"], "log"),
        (["/x/redis/asyncio/client.py", "/p/jobs/scripts/runner.py", "/p/worker/lanes/settler.py"], "Redis"),
        (["/p/worker/lanes/settler.py"], "settle"),
        (["/p/worker/gate/gate.py", "/p/worker/lanes/lane.py", "/p/worker/scheduler/lane_loop.py"], "gate"),
        (["/p/worker/scheduler/lane_loop.py", "/p/worker/runtime/runtime.py"], "lane"),
        (["/usr/lib/asyncio/events.py"], OTHERS),
        ([], OTHERS),
    ],
)
def test_time_belongs_to_the_innermost_room_of_a_stack(stack: list[str], room: str) -> None:
    """Callers are not charged."""
    assert room == room_of(stack)


def test_subsystems_name_files_that_exist() -> None:
    """Otherwise a moved module would count as part of another subsystem."""
    root = Path(__file__).parents[3]
    ours = {
        f"/{path.relative_to(root).as_posix()}"
        for room in ("jobs", "worker")
        for path in (root / room).rglob("*.py")
    }
    named = {part for parts in ROOMS.values() for part in parts if part.startswith(("/worker/", "/jobs/"))}

    assert set() == {part for part in named if not any(part in path for path in ours)}


def test_the_time_of_threads_belongs_to_their_rooms() -> None:
    """The names of the threads decide."""
    assert "sink, in threads" == room_of_thread("names_3") == room_of_thread("blocks_0")
    assert "other work, in threads" == room_of_thread("uvloop_0")
    assert "engine, in threads" == room_of_thread("sending_0")


def test_the_summary_has_the_ratio_of_every_load_to_one_program() -> None:
    """The table has ratios of rate and CPU time, and is empty for a program without figures."""
    loads = {
        "small": {"fetchfleet": {"per_s": 30.0, "cpu_us": 50.0}, "script": {"per_s": 20.0, "cpu_us": 200.0}},
        "large": {"script": {"mb_per_s": 9.0, "cpu_us": 8.0}},
    }

    lines = summary(loads, {"small": "per_s", "large": "mb_per_s"}, "script").markdown.splitlines()

    assert "|  | small, rate | large, rate | small, CPU | large, CPU |" in lines
    assert "| fetchfleet | 1.50 |  | 0.25 |  |" in lines
    assert "| script | 1.00 | 1.00 | 1.00 | 1.00 |" in lines


def test_a_target_is_met_by_a_ratio_on_the_right_side_of_its_bound() -> None:
    """A rate has a lower bound, CPU time an upper one. Without figures it is neither met nor missed."""
    fast, slow = {"per_s": 60.0, "cpu_us": 401.0}, {"per_s": 100.0, "cpu_us": 200.0}

    lines = targets({"small": {"fetchfleet": fast, "aiohttp script": slow}}).markdown.splitlines()

    assert "| small: rate of fetchfleet | at least 0.6 times the aiohttp script | 0.60 | met |" in lines
    assert "| small: CPU time of fetchfleet | at most 2 times the aiohttp script | 2.00 | missed |" in lines
    assert "| tls: CPU time of fetchfleet, direct | at most 1.2 times the aiohttp script |  |  |" in lines


def test_targets_name_programs_that_are_measured() -> None:
    """A target may name a layer instead."""
    names = {peer.name for peer in PEERS}
    of_layers = {*LAYERS, "worker, httpx", "worker, direct"}

    for target in TARGETS:
        assert {target.program, target.base} <= (of_layers if target.load == "layers" else names)


def test_each_layer_is_compared_with_the_straight_line() -> None:
    """The CPU times are compared."""
    figure = {"cpu_us": 30.4, "per_s": 9000.0, "times_straight_line": 0.2}

    assert "| client | 30 | 9,000 | 0.20 |" in layers({"client": figure}, "Layers").markdown.splitlines()


def test_the_markdown_table_has_the_figures() -> None:
    """A row for each program, and beside each peer the speed of fetchfleet relative to it."""
    measured = {"fetchfleet": of_rates([2000.0]), "arq": of_rates([1000.0])}

    lines = rates(with_ratios(measured, "per_s"), "Enqueued").markdown.splitlines()

    assert "| fetchfleet | 2,000 | 2,000 to 2,000 |  |" in lines
    assert "| arq | 1,000 | 1,000 to 1,000 | 2.00 |" in lines
