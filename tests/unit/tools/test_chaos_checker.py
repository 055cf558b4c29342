"""The checker of chaos runs finds each breach that is planted in a history."""

import hashlib
from typing import Any

import msgspec
import pytest

from fetchfleet.jobs.contract.ids import path_of
from tools.chaos import hosts
from tools.chaos.checker import judge
from tools.chaos.history import (
    Acknowledged,
    Attempted,
    BackoffWindow,
    Cancelling,
    Fault,
    FetchEnd,
    Followed,
    Leftovers,
    ObservedRequest,
    Record,
    StoredFile,
    WorkerDeath,
)
from tools.chaos.schedule import Kind, plan

BATCH = "0123456789abcdef"
HOST = hosts.HOSTS[0]
URLS = [f"http://{HOST}:80{path}" for path in ("/f/one", "/go/127.0.8.2:80/two", "/gone/three", "/post/four")]
IDS = [f"{BATCH}-{place:08x}" for place in range(len(URLS))]
KILLER = f"{BATCH}-000000ff"


def digest(url: str) -> str:
    return hashlib.sha256(hosts.body_of(hosts.name_of(url))).hexdigest()


def ended(place: int, **changes: Any) -> FetchEnd:
    url, of = URLS[place], IDS[place]
    good = FetchEnd(of, url, "stored", None, 200, path_of(of), digest(url), 1, 1_000_000)
    return msgspec.structs.replace(good, **changes)


def request(target: str, arrived_s: float, by: str = "w1.1", **changes: Any) -> ObservedRequest:
    good = ObservedRequest(HOST, target, by, arrived_s, arrived_s + 0.5, "normal", 200, aborted=False)
    return msgspec.structs.replace(good, **changes)


GONE = ended(2, outcome="failed", reason="http_status", status=404, path=None, sha256=None)
GOOD = Record(
    producer=[Attempted(URLS, BATCH), Acknowledged(IDS, URLS)],
    requests=[request("/f/one", 1.0), request("/post/four", 1.1)],
    ended=[ended(0), ended(1), GONE, ended(3)],
    followed=[Followed(BATCH, IDS, ended=True)],
    found=[StoredFile(path_of(IDS[place]), digest(URLS[place])) for place in (0, 1, 3)],
)


def breaches(**changes: Any) -> list[str]:
    return judge(msgspec.structs.replace(GOOD, **changes)).breaches


def test_a_history_without_fault_has_no_breach() -> None:
    """The other tests change this history."""
    assert [] == breaches()


PLANTED: dict[str, tuple[str, dict[str, Any]]] = {
    "a lost ID": (
        "acknowledged and lost",
        {"producer": [*GOOD.producer, Acknowledged([f"{BATCH}-000000ff"], [URLS[0]])]},
    ),
    "a lost message of the inbox": (
        "acknowledged and lost",
        {"producer": [*GOOD.producer, Acknowledged([""], [f"http://{HOST}/f/five"])]},
    ),
    "an unexpected ID": (
        "never submitted",
        {
            "ended": [
                *GOOD.ended,
                ended(
                    0,
                    id=f"{BATCH}-000000ff",
                    url=f"http://{HOST}/f/x",
                    path=None,
                    outcome="failed",
                    reason="http_status",
                ),
            ]
        },
    ),
    "a duplicate result": ("ended twice", {"ended": [*GOOD.ended, ended(0)]}),
    "two fetches of one URL": ("ended twice", {"ended": [*GOOD.ended, ended(0, id=f"{BATCH}-000000ff")]}),
    "a result read twice": ("read incorrectly", {"followed": [Followed(BATCH, [*IDS, IDS[0]], ended=True)]}),
    "a result not read": ("read incorrectly", {"followed": [Followed(BATCH, IDS[1:], ended=True)]}),
    "results out of order": ("read incorrectly", {"followed": [Followed(BATCH, IDS[::-1], ended=True)]}),
    "a batch not read to its end": ("not read to the end", {"followed": [Followed(BATCH, IDS, ended=False)]}),
    "a wrong body": (
        "body on disk differs from the result",
        {"found": [StoredFile(GOOD.found[0].path, digest("/f/two")), *GOOD.found[1:]]},
    ),
    "a missing body": ("body on disk differs from the result", {"found": GOOD.found[1:]}),
    "a digest that is not the body's": (
        "body on disk differs from the result",
        {"ended": [ended(0, sha256=digest("/f/two")), *GOOD.ended[1:]]},
    ),
    "a wrong file of a fetch that failed": (
        "belongs to no fetch",
        {"found": [*GOOD.found, StoredFile(path_of(IDS[2]), digest("/f/one"))]},
    ),
    "an unknown file": (
        "belongs to no fetch",
        {"found": [*GOOD.found, StoredFile("x/y", digest("/f/one"))]},
    ),
    "a failure that nothing explains": (
        "unexplained result",
        {"ended": [ended(0, outcome="failed", reason="read"), *GOOD.ended[1:]]},
    ),
    "a fetch given up as poison although it kills no worker": (
        "unexplained result",
        {
            "ended": [ended(0, outcome="failed", reason="poison", path=None), *GOOD.ended[1:]],
            "faults": [Fault(Kind.WORKER_KILLED, "w1.1", n, n) for n in range(3)],
        },
    ),
    "a cancellation without a request": (
        "unexplained result",
        {"ended": [ended(0, outcome="cancelled"), *GOOD.ended[1:]]},
    ),
    "an attempt charged for a fault": ("2 attempts", {"ended": [ended(0, attempts=2), *GOOD.ended[1:]]}),
    "a POST sent again": ("sent twice", {"requests": [*GOOD.requests, request("/post/four", 9.0)]}),
    "too many requests at once": (
        "requests at once",
        {"requests": [request(f"/f/{n}", 1 + n / 100) for n in range(hosts.CONCURRENCY + 1)]},
    ),
    "a request inside a back-off window": (
        "back off",
        {"requests": [request("/f/one", 1.7)], "backoffs": [BackoffWindow(HOST, 1.0, 2.0)]},
    ),
    "a fetch that kills a tenth worker": (
        "killed too many workers",
        {"requests": [*GOOD.requests, *(request("/kill/ten", 9.0, f"w{n}.1") for n in range(10))]},
    ),
    "a lane left in Redis": ("left in Redis: lane", {"remains": Leftovers(["lane x is held"], 0.0)}),
    "a worker that exited": (
        "w1.1: exited unasked",
        {"died": [WorkerDeath("w1.1", "exited unasked with 1")]},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_found(name: str) -> None:
    """The checker describes it in a sentence."""
    sentence, changes = PLANTED[name]

    assert [breach for breach in breaches(**changes) if sentence in breach]


def test_an_effect_of_the_faults_is_not_a_breach() -> None:
    """Cancelled batches, interrupted POSTs, attempts that a host failed, workers killed by a fetch."""
    changes = {
        1: {"outcome": "cancelled", "path": None},
        3: {"outcome": "failed", "reason": "interrupted", "path": None},
    }

    assert [] == breaches(
        followed=[],
        producer=[*GOOD.producer, Cancelling(BATCH)],
        ended=[ended(0), GONE, *(ended(index, **change) for index, change in changes.items())],
    )
    killer = f"http://{HOST}:1/kill/five"
    assert [] == breaches(
        producer=[*GOOD.producer, Attempted([killer]), Acknowledged([KILLER], [killer])],
        followed=[Followed(BATCH, [*IDS, KILLER], ended=True)],
        ended=[*GOOD.ended, FetchEnd(KILLER, killer, "failed", "poison", None, None, None, 1, 0)],
        requests=[
            *GOOD.requests,
            *(request("/kill/five", 9.0 + n, f"w{n}.1", act="delayed", status=None) for n in range(5)),
        ],
        died=[WorkerDeath("w4.1", "exited unasked with -9")],
    )
    assert [] == breaches(
        ended=[ended(0, attempts=2), *GOOD.ended[1:]],
        requests=[request("/f/one", 1.0, act="500", status=500)],
    )


def test_fetches_of_a_stopped_worker_count_until_its_lease_ends() -> None:
    """Its connections stay open meanwhile."""
    stopped = [request(f"/f/{n}", 1.0, finished_s=10.0) for n in range(hosts.CONCURRENCY)]
    stop = [Fault(Kind.WORKER_STOPPED, "w1.1", 1.2, 9.0)]
    soon, late = request("/f/other", 2.0, "w2.1"), request("/f/other", 2.3, "w2.1")

    assert [] == breaches(requests=[*stopped, late], faults=stop)
    assert 1 == len(breaches(requests=[*stopped, soon], faults=stop))
    assert 1 == len(breaches(requests=[*stopped, late]))


def test_repeats_are_counted_and_allowed() -> None:
    """A complete response without a result costs the host a request, but is not a breach."""
    verdict = judge(msgspec.structs.replace(GOOD, requests=[request("/f/one", float(n)) for n in range(5)]))

    assert (2, []) == (verdict.repeats, verdict.breaches)


def test_recoveries_are_measured_from_the_fault() -> None:
    """A recovery ends at the next request of another worker to the host; for Redis, at the next result."""
    verdict = judge(
        msgspec.structs.replace(
            GOOD,
            requests=[
                request("/f/one", 1.0),
                request("/f/two", 5.0, "w2.1"),
                request("/f/three", 25.0, "w1.2"),
            ],
            ended=[ended(0, at_ms=21_500), *GOOD.ended[1:]],
            faults=[
                Fault(Kind.WORKER_KILLED, "w1.1", 1.5, 2.0),
                Fault(Kind.WORKER_KILLED, "w2.1", 5.5, 6.0),
                Fault(Kind.REDIS_KILLED, "", 9.0, 10.0),
                Fault(Kind.REDIS_FROZEN, "", 10.0, 20.0),
            ],
        )
    )

    assert (2, [3.5]) == verdict.recoveries[Kind.WORKER_KILLED]
    assert (1, [1.5]) == verdict.recoveries[Kind.REDIS_FROZEN]
    assert (1, []) == verdict.recoveries[Kind.REDIS_KILLED]
    assert (0, []) == verdict.recoveries[Kind.REDIS_RESTARTED]


def test_the_plan_depends_on_the_seed_only() -> None:
    """Each kind of fault occurs, all of them within the duration of the run."""
    faults = plan(7, 180, 4)

    assert faults == plan(7, 180, 4) != plan(8, 180, 4)
    assert set(Kind) == {fault.kind for fault in faults}
    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    assert all(0 < fault.at_s < 180 for fault in faults)
    assert {None, 0, 1, 2, 3} == {fault.worker for fault in faults}
