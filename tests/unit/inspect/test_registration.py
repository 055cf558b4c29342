"""Names and instances of workers."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet import __version__
from fetchfleet.worker.inspect.registration import (
    Registration,
    abilities_of,
    doubles_of,
    is_or_wraps,
    name_of,
    registration_of,
)
from fetchfleet.worker.inspect.workers.peers import differences
from fetchfleet.worker.settings import Settings

STARTED_MS = 1_000


def registered(name: str) -> Registration:
    """Return the registration of a new instance."""
    return registration_of(Settings(worker_id=name), STARTED_MS)


@given(st.text(min_size=1))
def test_each_process_is_an_instance_whose_name_can_be_read(name: str) -> None:
    """Two processes with one name differ. Old readers find the name at the beginning."""
    one, two = registered(name), registered(name)

    assert one.instance != two.instance
    assert {name} == {name_of(one.instance), name_of(two.instance), one.name}
    assert f"{one.instance}-".startswith(f"{name}-")


@pytest.mark.parametrize("id_of_an_old_worker", ["worker-1", "host-4194304", "a", "pod-x7k2p", ""])
def test_the_id_of_an_old_worker_is_its_name(id_of_an_old_worker: str) -> None:
    """Its host name or process ID does not count as the suffix of an instance."""
    assert id_of_an_old_worker == name_of(id_of_an_old_worker)


@pytest.mark.parametrize(
    ("worker", "name", "expected"),
    [
        *(("worker-1", "worker-1", True), ("host-4711", "host", True), ("my-host-1", "my-host", True)),
        *(
            ("worker-1-europe", "worker-1", False),
            ("worker-10", "worker-1", False),
            ("host-a-1", "host", False),
        ),
    ],
)
def test_a_health_check_finds_a_worker_by_its_name_or_its_host(
    worker: str,
    name: str,
    expected: bool,  # noqa: FBT001 a parameter of the test
) -> None:
    """The check finds workers of this and of an older version, but none with a longer name."""
    assert [expected] * 2 == [is_or_wraps(worker, name), is_or_wraps(registered(worker).instance, name)]


def test_a_double_is_another_live_instance_of_the_name() -> None:
    """An old worker with the name is one. An ended predecessor and other names are not."""
    own, other, ended = registered("worker-1"), registered("worker-1"), registered("worker-1")
    longer = registered("worker-1-europe")
    heartbeats = [
        (own.instance, STARTED_MS + 5.0),
        (other.instance, STARTED_MS + 1.0),
        (ended.instance, STARTED_MS - 1.0),
        ("worker-1", STARTED_MS + 2.0),
        ("worker-10", STARTED_MS + 2.0),
        (longer.instance, STARTED_MS + 2.0),
    ]

    assert sorted([other.instance, "worker-1"]) == doubles_of(own, heartbeats)
    assert [] == doubles_of(longer, heartbeats)


def test_a_registration_names_the_program() -> None:
    """The version is that of the package."""
    fields = registration_of(Settings(worker_id="w", engine="direct", sink="warc"), 0).log_fields()

    assert (__version__, "direct", "warc") == (fields["version"], fields["engine"], fields["sink"])
    assert fields["python"].startswith("3.")


def test_a_registration_names_the_abilities(tmp_path: Path) -> None:
    """Sink and in folder give abilities. A version that publishes none has those of its sink."""
    files = registration_of(Settings(worker_id="a"), 0)
    warc = registration_of(Settings(worker_id="b", sink="warc", in_folder=tmp_path), 0)
    old = msgspec.structs.replace(warc, abilities=None)

    assert (files.abilities, warc.abilities) == (("files",), ("in_folder",))
    assert [abilities_of(one).names for one in (files, warc, old, None)] == [
        {"files"},
        {"in_folder"},
        {"in_folder"},
        {"files", "in_folder"},
    ]


def test_differences_name_the_workers_of_each_setting(tmp_path: Path) -> None:
    """Unpublished settings do not count as a difference, nor does another order of the same networks."""
    one = registration_of(Settings(worker_id="a", allow_net="10.0.0.0/8,127.0.0.0/8"), 0)
    two = registration_of(
        Settings(worker_id="b", allow_net="127.0.0.0/8,10.0.0.0/8", in_folder=tmp_path, sink="warc"), 0
    )
    old = Registration(name="c", instance="c-0", sink="files")

    assert differences([one, one]) == {}
    assert differences([one, two, old]) == {
        "sink": {"files": ["a", "c"], "warc": ["b"]},
        "in_folder": {"given": ["b"], "none": ["a"]},
    }
