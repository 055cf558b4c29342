"""`if_exists` of a fetch, and the durability of a policy."""

import pytest

from fetchfleet.jobs.contract.entry import Entry
from fetchfleet.jobs.contract.fetch import Fetch, decode_fetch, encode
from fetchfleet.jobs.contract.result import Outcome, Reason
from fetchfleet.jobs.errors import InvalidFetchError
from fetchfleet.worker.fetch.rules.decide import Finish, HostState, decide
from fetchfleet.worker.fetch.rules.outcome import AlreadyExists, Failed, host_signal_of
from fetchfleet.worker.gate.gate import HostSignal
from fetchfleet.worker.policy.file import parse_policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError

URL = "http://a/"
PLACES = (b'"dest":"a"', b'"name":"a"')


@pytest.mark.parametrize("what", ["replace", "skip", "fail", "suffix"])
def test_if_exists_accepts_four_values(what: str) -> None:
    """A dest is replaced by default, a name gets a suffix."""
    dest, name = (b'{"url":"http://a/",%b,"if_exists":"%b"}' % (field, what.encode()) for field in PLACES)

    assert what == decode_fetch(dest).on_existing
    assert what == decode_fetch(name).on_existing
    assert ("replace", "suffix") == (
        Fetch(url=URL, dest="a").on_existing,
        Fetch(url=URL, name="a").on_existing,
    )
    with pytest.raises(
        InvalidFetchError, match="if_exists: 'keep' is not one of replace, skip, fail, suffix"
    ):
        Fetch(url=URL, dest="a", if_exists="keep")


def test_a_default_of_if_exists_has_the_json_of_a_fetch_without_it() -> None:
    """Older versions write and read the same JSON."""
    assert encode(Fetch(url=URL, dest="a")) == encode(Fetch(url=URL, dest="a", if_exists="replace"))
    assert encode(Fetch(url=URL, name="a")) == encode(Fetch(url=URL, name="a", if_exists="suffix"))
    assert b"if_exists" not in encode(Fetch(url=URL, if_exists="replace"))


@pytest.mark.parametrize("what", ["skip", "fail", "suffix"])
def test_if_exists_without_a_dest_is_refused(what: str) -> None:
    """A generated name is always free."""
    assert Fetch(url=URL, if_exists="replace").dest is None
    with pytest.raises(InvalidFetchError, match=f"if_exists: '{what}' needs a dest"):
        Fetch(url=URL, if_exists=what)


def test_a_kept_file_is_unchanged_and_a_conflicting_one_fails() -> None:
    """Neither is retried, and neither counts against the host."""
    entry = Entry(id="0123456789abcdef-00000007", deadline_ms=9, fetch=Fetch(url=URL, dest="a"))
    found = AlreadyExists(path="a", size_bytes=3, status=200)
    taken = Failed(reason=Reason.EXISTS, final=True, status=200)

    decided = [decide(entry, what, LanePolicy(), 0, HostState(), 0.5) for what in (found, taken)]

    assert decided == [
        Finish(outcome=Outcome.UNCHANGED),
        Finish(outcome=Outcome.FAILED, reason=Reason.EXISTS),
    ]
    assert [HostSignal.ANSWERED] * 2 == [host_signal_of(found), host_signal_of(taken)]


def test_durability_is_one_of_three() -> None:
    """The worker syncs nothing, the file, or the file and its folders."""
    policy = parse_policy('[default]\ndurability = "file"\n[host."a.com"]\ndurability = "full"')

    assert ["file", "full"] == [policy.for_lane(lane).durability for lane in ("b.com", "a.com")]
    assert "none" == LanePolicy().durability
    with pytest.raises(PolicyError, match="durability: 'disk' is not one of none, file, full"):
        parse_policy('[default]\ndurability = "disk"')
