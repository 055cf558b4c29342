"""Pauses, their exceptions and their ends, in every order and beside older versions."""

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fetchfleet.worker.policy.file import Policy, parse_policy
from fetchfleet.worker.policy.names import DEFAULT, concerns, covering, in_shell
from fetchfleet.worker.policy.pauses import (
    Overrides,
    StillPausedError,
    Stop,
    forgotten,
    lifted,
    paused,
    pauses_of,
    resumed,
)

NOTHING = Overrides({}, {})
HOSTS = ["a.x.com", "b.x.com", "x.com", "a.b.x.com", "c.org", "127.0.80.3"]
NAMES = st.sampled_from([*HOSTS, "*.x.com", "*.b.x.com", "*.com", DEFAULT])


def stopped(found: Overrides, lane: str, file: Policy | None = None) -> bool:
    """Return whether a worker with this policy file starts no fetch of the lane."""
    return (file or Policy()).overridden(*found).for_lane(lane).paused


def stopped_by_old_workers(tables: Mapping[str, Mapping[str, object]], lane: str) -> bool:
    """Return the same for a worker that knows no exceptions: the narrowest key counts."""
    keys = (tables[name]["paused"] for name in covering(lane) if "paused" in tables.get(name, {}))
    return next(keys, False) is True


def paused_by_old_command(found: Overrides, name: str) -> Overrides:
    """Return the overrides after `pause` of an older version."""
    table = {**found.tables.get(name, {}), "paused": True}
    return Overrides({**found.tables, name: table}, found.marks)


def resumed_by_old_command(found: Overrides, name: str) -> Overrides:
    """Return the overrides after `resume` of an older version, which may leave `paused: false`."""
    tables = dict(found.tables)
    table = {key: value for key, value in tables.pop(name, {}).items() if key != "paused"}
    if table:
        tables[name] = table
    if stopped_by_old_workers(tables, name):
        tables[name] = {**table, "paused": False}
    return Overrides(tables, found.marks)


class Operators(RuleBasedStateMachine):
    """Operators pause and resume in any order. A model keeps the pauses and the exceptions."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Overrides({"a.x.com": {"burst": 3}}, {})
        self.pauses: set[str] = set()
        self.exceptions: set[str] = set()
        self.now_ms = 0

    def expected(self, lane: str) -> bool:
        """Return whether some pause covers the lane and no narrower exception does."""
        ranks = [*covering(lane)]
        of = [ranks.index(name) for name in self.pauses if name in ranks]
        excepted = [ranks.index(name) for name in self.exceptions if name in ranks]
        return min(of, default=99) < min(excepted, default=98)

    def drop_orphans(self) -> None:
        """End exceptions whose last pause has ended."""
        self.exceptions = {name for name in self.exceptions if self.pauses & {*covering(name)}}

    @rule(name=NAMES)
    def pause(self, name: str) -> None:
        """Pause a name: every host below it is stopped, or named as an exception."""
        self.now_ms += 1
        self.found = paused(self.found, name, {}, self.now_ms)
        self.exceptions.discard(name)
        self.pauses.add(name)
        not_stopped = pauses_of(self.found, {}).not_stopped(name)
        for lane in HOSTS:
            if concerns(name, lane) and not stopped(self.found, lane):
                assert any(concerns(other, lane) for other in not_stopped)

    @rule(name=NAMES)
    def resume(self, name: str) -> None:
        """Resume a name: its pause ends, or the refusal names the commands for a wider one."""
        self.now_ms += 1
        blocked = self.expected_without(name)
        if blocked:
            with pytest.raises(StillPausedError) as caught:
                resumed(self.found, name, {}, self.now_ms, excepted=False)
            assert f"fetchfleet resume {in_shell(name)} --except" in str(caught.value)
            assert f"fetchfleet resume {in_shell(caught.value.stop.name)};" in str(caught.value)
            assert caught.value.stop.name in self.pauses - {name}
            return
        self.found = resumed(self.found, name, {}, self.now_ms, excepted=False)
        self.pauses.discard(name)
        self.drop_orphans()
        assert not self.expected(name)

    @rule(name=NAMES)
    def make_an_exception(self, name: str) -> None:
        """Resume with an exception: the name continues under any pause."""
        self.now_ms += 1
        blocked = self.expected_without(name)
        if not blocked and name not in self.pauses | self.exceptions:
            return  # an exception from nothing would lift pauses of the file only
        self.found = resumed(self.found, name, {}, self.now_ms, excepted=blocked)
        self.pauses.discard(name)
        if blocked:
            self.exceptions.add(name)
        self.drop_orphans()
        assert not self.expected(name)

    def expected_without(self, name: str) -> bool:
        """Return whether another pause than that of the name stops it."""
        others, self.pauses = self.pauses, self.pauses - {name}
        try:
            return self.expected(name)
        finally:
            self.pauses = others

    @rule(name=NAMES)
    def unset(self, name: str) -> None:
        """Remove the pause or its opposite by `policy unset NAME paused`."""
        self.found = forgotten(self.found, name)
        self.pauses.discard(name)
        self.exceptions.discard(name)
        self.drop_orphans()

    @invariant()
    def a_host_is_stopped_if_a_pause_covers_it_without_a_narrower_exception(self) -> None:
        """Workers of older versions reach the same verdict."""
        policy = Policy().overridden(*self.found)
        for lane in HOSTS:
            assert self.expected(lane) == policy.for_lane(lane).paused == self.by_old_workers(lane), lane

    def by_old_workers(self, lane: str) -> bool:
        """Return the verdict of an older worker on the same tables."""
        return stopped_by_old_workers(self.found.tables, lane)

    @invariant()
    def without_a_pause_nothing_is_left(self) -> None:
        """No opposite remains, and other keys of a table are untouched."""
        assert self.found.tables["a.x.com"]["burst"] == 3
        if not self.pauses:
            assert Overrides({"a.x.com": {"burst": 3}}, {}) == self.found


TestOperators = Operators.TestCase
TestOperators.settings = settings(max_examples=40, stateful_step_count=10, deadline=None)


class MixedOperators(RuleBasedStateMachine):
    """Commands of this version beside those of older ones."""

    def __init__(self) -> None:
        super().__init__()
        self.found = NOTHING
        self.now_ms = 0

    @rule(name=NAMES)
    def old_pause(self, name: str) -> None:
        """Pause by an older version: workers of this version obey it."""
        self.found = paused_by_old_command(self.found, name)
        assert pauses_of(self.found, {}).stop(name) == Stop(name, in_file=False, since_ms=self.since(name))

    def since(self, name: str) -> int | None:
        """Return the start of the name's pause according to the marks."""
        return pauses_of(self.found, {}).paused[name]

    @rule(name=NAMES)
    def old_resume(self, name: str) -> None:
        """Resume by an older version."""
        self.found = resumed_by_old_command(self.found, name)

    @rule(name=NAMES)
    def pause(self, name: str) -> None:
        """Pause beside older versions: hosts below stop on workers of every version, or are named."""
        self.now_ms += 1
        self.found = paused(self.found, name, {}, self.now_ms)
        not_stopped = pauses_of(self.found, {}).not_stopped(name)
        for lane in HOSTS:
            if concerns(name, lane) and not any(concerns(other, lane) for other in not_stopped):
                assert stopped(self.found, lane), lane
                assert stopped_by_old_workers(self.found.tables, lane), lane

    @rule(name=NAMES)
    def except_(self, name: str) -> None:
        """Make an exception: the name continues."""
        self.now_ms += 1
        self.found = resumed(self.found, name, {}, self.now_ms, excepted=True)
        assert pauses_of(self.found, {}).stop(name) is None

    @invariant()
    def a_paused_false_of_an_older_version_exempts_nothing(self) -> None:
        """Without it, the same hosts are stopped."""
        pauses = pauses_of(self.found, {})
        tables = {name: of for name, of in self.found.tables.items() if name not in pauses.lifted}
        without, policy = (Policy().overridden(of, self.found.marks) for of in (tables, self.found.tables))
        for lane in HOSTS:
            assert without.for_lane(lane).paused == policy.for_lane(lane).paused


TestMixedOperators = MixedOperators.TestCase
TestMixedOperators.settings = settings(max_examples=40, stateful_step_count=10, deadline=None)


def test_a_host_resumed_by_an_older_version_stops_at_the_next_pause() -> None:
    """`paused: false`, which its `resume` has left behind, is not an exception."""
    found = resumed_by_old_command(paused_by_old_command(NOTHING, DEFAULT), "a.x.com")
    found = resumed_by_old_command(found, DEFAULT)
    assert {"a.x.com": {"paused": False}} == found.tables

    assert stopped(paused_by_old_command(found, DEFAULT), "a.x.com")
    again = paused(found, DEFAULT, {}, 1)
    assert stopped(again, "a.x.com")
    assert {DEFAULT: {"paused": True}} == again.tables


def test_an_exception_ends_with_its_pause() -> None:
    """The next pause of all hosts stops all hosts."""
    found = resumed(paused(NOTHING, DEFAULT, {}, 1), "a.x.com", {}, 2, excepted=True)
    assert ["a.x.com"] == pauses_of(found, {}).not_stopped(DEFAULT)
    assert NOTHING == resumed(found, DEFAULT, {}, 3, excepted=False)


def test_a_pause_keeps_the_time_at_which_it_began() -> None:
    """A repeated pause does not change the time."""
    again = paused(paused(NOTHING, DEFAULT, {}, 1), DEFAULT, {}, 2)
    assert Stop(DEFAULT, in_file=False, since_ms=1) == pauses_of(again, {}).stop("a.x.com")


FILE = parse_policy("""
[default]
paused = true
[host."*.x.com"]
paused = false
[host."b.x.com"]
paused = true
""")


@pytest.mark.parametrize(("lane", "stop"), [("c.org", DEFAULT), ("a.x.com", None), ("b.x.com", "b.x.com")])
def test_the_narrowest_table_of_the_file_decides_its_pauses(lane: str, stop: str | None) -> None:
    """`paused = false` of a narrower table lifts a wider pause."""
    assert (Stop(stop, in_file=True) if stop else None) == FILE.pauses.stop(lane)
    assert (stop is not None) == FILE.for_lane(lane).paused


@pytest.mark.parametrize("lane", HOSTS)
def test_a_pause_set_at_run_time_stops_hosts_that_the_file_does_not_pause(lane: str) -> None:
    """`paused = false` in a file is not an exception from it."""
    assert stopped(paused(NOTHING, DEFAULT, FILE.pauses.in_file, 1), lane, FILE)


def test_only_an_exception_lifts_a_pause_of_the_file() -> None:
    """The refusal names the command. The exception applies to the file's pause only."""
    in_file = FILE.pauses.in_file
    with pytest.raises(StillPausedError, match="policy file of the workers pauses default") as caught:
        resumed(NOTHING, "c.org", in_file, 1, excepted=False)
    assert "fetchfleet resume c.org --except" in str(caught.value)

    for found in (
        resumed(NOTHING, "c.org", in_file, 1, excepted=True),
        resumed(NOTHING, "c.org", {}, 1, excepted=True),  # the command does not know the workers' file
        lifted(NOTHING, "c.org"),
    ):
        assert not stopped(found, "c.org", FILE)
        assert stopped(paused(found, DEFAULT, in_file, 2), "c.org", FILE)
        assert stopped(paused(found, "*.org", in_file, 2), "c.org", FILE)
        assert not stopped(resumed(found, "c.org", in_file, 2, excepted=False), "c.org", FILE)
        assert stopped(forgotten(found, "c.org"), "c.org", FILE)


def test_a_narrower_pause_of_the_file_holds_under_a_wider_exception() -> None:
    """An exception lifts pauses of its own width or wider."""
    found = resumed(NOTHING, DEFAULT, FILE.pauses.in_file, 1, excepted=True)
    assert not stopped(found, "c.org", FILE)
    assert stopped(found, "b.x.com", FILE)


def test_paused_false_is_refused_under_a_pause_set_at_run_time() -> None:
    """`policy set` cannot bypass the pause."""
    with pytest.raises(StillPausedError, match="fetchfleet resume default"):
        lifted(paused(NOTHING, DEFAULT, {}, 1), "a.x.com")
