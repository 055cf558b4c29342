"""The bounds of every number of a policy."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.gate import gate
from fetchfleet.worker.gate.state import GateState
from fetchfleet.worker.inspect.explain import local_time
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import BOUNDS, TIMEOUT_BOUNDS, LanePolicy, PolicyError, Range, Timeouts
from fetchfleet.worker.policy.pairs import parsed

NUMBERS = [name for name in BOUNDS if name not in {"concurrency", "ports"}]
NOW_MS = 1_700_000_000_000
DOCS = Path(__file__).parents[3] / "docs/policy.md"

ABSURD = ["-1", "5e-324", "1e-300", "1e308", "inf", "-inf", "nan", "true", "1" + "0" * 400, "1" + "0" * 5000]


def test_every_number_of_a_policy_has_bounds() -> None:
    """A new key must have bounds too."""
    defaults = msgspec.structs.asdict(LanePolicy())
    numeric = {name for name, value in defaults.items() if type(value) in {int, float}}

    assert BOUNDS.keys() == numeric | {"ports"}
    assert all(0 < bounds.minimum < bounds.maximum < 1 << 53 for bounds in [*BOUNDS.values(), TIMEOUT_BOUNDS])


@pytest.mark.parametrize("name", [*BOUNDS, *(f"timeout.{name}" for name in Timeouts.__struct_fields__)])
@pytest.mark.parametrize("text", ABSURD, ids=lambda text: text[:8])
def test_an_absurd_number_is_refused_in_the_file_and_at_run_time(name: str, text: str) -> None:
    """The error names the key, and omits thousands of digits."""
    key, dot, inner = name.partition(".")
    if dot:
        values = {of: text if of == inner else "1" for of in Timeouts.__struct_fields__}
        of_file = "{" + ", ".join(f"{of} = {value}" for of, value in values.items()) + "}"
        at_run_time = "{" + ",".join(f'"{of}":{value}' for of, value in values.items()) + "}"
    else:
        of_file = at_run_time = f"[{text}]" if key == "ports" else text
    with pytest.raises(PolicyError) as refused:
        parse_policy(f"[default]\n{key} = {of_file}\n")
    with pytest.raises((PolicyError, msgspec.ValidationError)) as unset:
        msgspec.convert(parsed([f"{key}={at_run_time}"]), LanePolicy)

    assert key in str(refused.value) or "not TOML" in str(refused.value)
    assert key in str(unset.value)
    assert max(len(str(refused.value)), len(str(unset.value))) < 250


@given(st.sampled_from(NUMBERS), st.integers() | st.floats() | st.booleans())
def test_a_number_is_accepted_only_within_its_bounds(name: str, value: float) -> None:
    """Zero is also accepted if it disables the rule."""
    bounds = BOUNDS[name]
    good = bounds.minimum <= value <= bounds.maximum or (bounds.off and value == 0)
    others: dict[str, Any] = {"retry_cap_s": 86_400, "retry_base_s": 0.001}
    if good and not isinstance(value, bool):
        assert getattr(LanePolicy(**{**others, name: value}), name) == value
    else:
        with pytest.raises(PolicyError, match=name):
            LanePolicy(**{**others, name: value})


@given(st.integers(-5, 1005), st.integers(-5, 1005))
def test_a_range_is_within_the_bounds_of_its_key(low: int, high: int) -> None:
    """Its ends are in order."""
    if 1 <= low <= high <= 1000:
        assert (low, high) == (Range(min=low, max=high).min, Range(min=low, max=high).max)
    else:
        with pytest.raises(PolicyError, match=r"concurrency\.(min|max)"):
            Range(min=low, max=high)


@given(st.sampled_from(["minimum", "maximum"]), st.booleans())
def test_a_lane_at_the_bounds_of_its_policy_works(end: str, obeys: bool) -> None:  # noqa: FBT001
    """No arithmetic fails, and every wait can be shown."""
    values: dict[str, Any] = {name: getattr(BOUNDS[name], end) for name in NUMBERS}
    policy = msgspec.convert(values | {"robots": "obey" if obeys else "ignore"}, LanePolicy)
    state = GateState(crawl_delay_s=60.0)
    for _ in range(3):
        state = gate.started(state, policy, NOW_MS)
        state = gate.throttled(state, policy, math.inf, NOW_MS, 0.99)
        state = gate.attempt_ended(
            state, policy, gate.Observation(gate.HostSignal.FAILED, NOW_MS, 1), NOW_MS, 0.9
        )
        state = gate.robots_unavailable(state, policy, NOW_MS, 0.99, 1e300)
    closed = gate.closed_until(state, policy, NOW_MS)

    assert closed is None or local_time(closed.until_ms)


def test_the_page_states_the_bounds() -> None:
    """The documented bounds of each key equal those in the code."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", DOCS.read_text(), re.MULTILINE))
    for name, bounds in BOUNDS.items():
        least, most = (f"{end:f}".rstrip("0").rstrip(".") if end % 1 else str(int(end)) for end in bounds[:2])
        assert f"{'0, or ' if bounds.off else ''}{least} to {most}" in rows[name], name
