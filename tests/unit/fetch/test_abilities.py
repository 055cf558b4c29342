"""The abilities that a fetch needs and a worker lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import Fetch
from fetchfleet.jobs.contract.entry import Entry, Hop
from fetchfleet.jobs.contract.ids import fetch_id
from fetchfleet.jobs.contract.result import Reason
from fetchfleet.worker.fetch.rules.abilities import (
    Abilities,
    Ability,
    Needs,
    SettingKind,
    describe_worker,
    needs_of,
    parse,
    setting_text,
)
from fetchfleet.worker.util.backoff import Spacing

WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
NAMES = WORDS.filter(lambda word: not word.startswith("!"))
URL = "http://a.example/"


def entry(*, hop: Hop | None = None, tried: tuple[str, ...] = (), **fields: object) -> Entry:
    fetch = Fetch(url=URL, method="POST" if "body_file" in fields else "GET", **fields)  # type: ignore[arg-type]
    return Entry(
        id=fetch_id("0" * 16, 0), deadline_ms=1, fetch=fetch, hop=hop, hops=hop is not None, tried=tried
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (entry(), set()),
        (entry(dest="a"), {Ability.FILES}),
        (entry(decode=True), {Ability.FILES}),
        (entry(body_file="f"), {Ability.IN_FOLDER}),
        (entry(body_file="f", dest="a"), {Ability.FILES, Ability.IN_FOLDER}),
        (entry(body_file="f", hop=Hop("GET", URL)), set()),
        (entry(body_file="f", hop=Hop("POST", URL, body_file="f")), {Ability.IN_FOLDER}),
    ],
    ids=["plain", "dest", "decode", "body_file", "both", "redirected-without", "redirected-with"],
)
def test_a_fetch_needs_the_abilities_of_its_next_request(made: Entry, expected: set[str]) -> None:
    """A redirect that drops the body needs no file for it."""
    assert needs_of(made) == Needs(frozenset(expected))


@given(st.frozensets(NAMES), st.frozensets(WORDS))
def test_needs_are_read_as_they_are_written(abilities: frozenset[str], tried: frozenset[str]) -> None:
    """Abilities that only newer workers know are kept."""
    needs = Needs(abilities, tried)
    assert parse(str(needs)) == needs


@given(st.frozensets(NAMES), st.frozensets(WORDS), st.frozensets(NAMES), st.frozensets(WORDS))
def test_a_worker_lacks_nothing_if_it_has_the_abilities_and_was_not_tried(
    abilities: frozenset[str], tried: frozenset[str], names: frozenset[str], settings: frozenset[str]
) -> None:
    """Every other ability is lacking, and named."""
    unmet = Abilities(names, settings).unmet(Needs(abilities, tried))

    assert (not unmet) == (abilities <= names and not tried & settings)
    assert unmet <= abilities | tried


def test_a_place_comes_from_the_setting_that_ended_the_attempt() -> None:
    """A worker without an in folder has no place for a missing file."""
    egress, folder = setting_text(SettingKind.EGRESS, "e"), setting_text(SettingKind.IN_FOLDER, "i")
    own = Abilities(frozenset(), frozenset({egress, folder}))

    assert own.setting_of(Reason.EGRESS_REFUSED) == egress
    assert own.setting_of(Reason.NO_BODY_FILE) == folder
    assert Abilities(frozenset(), frozenset({egress})).setting_of(Reason.NO_BODY_FILE) == ""


def test_a_missing_ability_is_shown_as_its_option() -> None:
    """An ability of a newer version has its name only."""
    assert (
        describe_worker([Ability.FILES, Ability.IN_FOLDER])
        == "a worker with --sink files (for dest, name or decode) and --in (for body_file)"
    )
    assert describe_worker(["newer"]) == "a worker with newer"
    assert describe_worker([]) == "a worker with other settings"


def test_returning_fetches_are_spaced_out() -> None:
    """The first waits min_wait_s, each next one every_s longer. After a pause, min_wait_s applies again."""
    spacing = Spacing(5.0, 0.5)
    assert [5.0, 5.5, 6.0] == [spacing.wait_s(100.0) for _ in range(3)]
    assert spacing.wait_s(200.0) == 5.0
