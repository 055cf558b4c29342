"""The policy that a fleet uses: the file that its workers publish, under the tables set at run time."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from fetchfleet.jobs import keys
from fetchfleet.jobs.redis_connection import number_of, text_of
from fetchfleet.worker.inspect.snapshot import worker_reports
from fetchfleet.worker.policy import overrides
from fetchfleet.worker.policy.file import Policy
from fetchfleet.worker.policy.model import LanePolicy, PolicyError
from fetchfleet.worker.policy.names import DEFAULT, covering
from fetchfleet.worker.policy.pauses import PAUSED, Overrides
from fetchfleet.worker.policy.published import NO_FILE, digest_of, read_published
from fetchfleet.worker.settings import NO_POLICY

MAX_FILES = 16
"""Policy files that are read if every worker has another."""

NAMES_SHOWN = 5
DIGEST_SHOWN_CHARS = 8


class Origin(StrEnum):
    """The source of the policy file that is shown."""

    WORKERS = "workers"
    """Published by the workers."""
    GIVEN = "given"
    """Named by the caller."""
    ASSUMED = "assumed"
    """None is known: the built-in defaults."""


class Source(msgspec.Struct, frozen=True):
    """The source of a value: `default`, `file` or `override`, and its table (None for default)."""

    source: str
    table: str | None = None


BUILT_IN = Source("default")


class WorkersPolicies(NamedTuple):
    """The policy files of the live workers.

    workers: the names of the workers with each digest; "" for those that publish none. files: by digest,
    those that can be read. faults: by digest, why the others cannot. refusals: by name, why a worker does not
    use the tables in Redis. behind: the workers that have not read them since they changed. instances: the
    name and the digest of each instance that publishes one.
    """

    workers: Mapping[str, Sequence[str]]
    files: Mapping[str, Policy]
    faults: Mapping[str, str]
    refusals: Mapping[str, str]
    behind: Sequence[str]
    instances: Mapping[str, tuple[str, str]]


class PolicyInForce(NamedTuple):
    """The policy of a fleet, as far as it is known here."""

    origin: Origin
    digest: str
    file: Policy
    policy: Policy
    """The file under the tables in Redis."""
    overrides: Overrides
    known: WorkersPolicies
    holder: str = ""
    """The worker that holds the lane asked about, if its file is the one shown."""
    refused: str = ""
    """Why the tables in Redis do not fit the file: then only their pauses hold. Empty if they fit."""

    def summary(self, lane: str) -> dict[str, Any]:
        """Return for machines where the policy of a lane comes from, and what to know about it."""
        return {
            "origin": self.origin,
            "digest": self.digest,
            "workers": {digest or "unknown": names for digest, names in self.known.workers.items()},
            "sources": msgspec.to_builtins(self.sources(lane)),
            "notes": list(self.notes(lane)),
        }

    def notes(self, lane: str) -> Iterator[str]:
        """Yield what limits the answer about a lane: what is assumed, what differs, what cannot be read."""
        workers, files = self.known.workers, self.known.files
        remedy = "name the workers' policy file with --policy"
        for digest, why in self.known.faults.items():
            yield f"policy file {short(digest)} of {listed(workers[digest])}: {why}; {remedy}"
        if self.origin is Origin.ASSUMED and not workers:
            yield f"no worker runs that publishes its policy: the built-in defaults are assumed; {remedy}"
        elif self.origin is Origin.ASSUMED and not self.known.faults:
            yield f"the workers are of a version that publishes no policy: the defaults are assumed; {remedy}"
        elif "" in workers:
            yield f"no policy is published by {listed(workers[''])} (an older version)"
        others = [digest for digest in workers if digest not in {"", self.digest}]
        if self.origin is Origin.GIVEN and others:
            yield f"--policy names file {short(self.digest)}, and workers use another"
        if others and (len(others) > 1 or self.origin is Origin.WORKERS):
            using = [f"{short(digest)} on {listed(workers[digest])}" for digest in [*workers] if digest]
            yield f"workers differ in their policy files: {'; '.join(using)}"
            if self.holder:
                yield f"shown is the file of {self.holder}, which holds {lane}"
        for digest in others:
            if digest in files and (text := self.difference(files[digest], lane)):
                yield f"{listed(workers[digest])} ({short(digest)}): {text} for {lane}"
        yield from self._notes_on_overrides()

    def _notes_on_overrides(self) -> Iterator[str]:
        if self.refused:
            yield (
                f"the tables set at run time are refused, all but their pauses: {self.refused};"
                " take the key back with: fetchfleet policy unset"
            )
        for name, why in self.known.refusals.items():
            yield f"{name} refuses the tables set at run time and keeps those before: {why}"
        if self.known.behind:
            yield f"the tables set at run time last are not yet in force on {listed(self.known.behind)}"

    def difference(self, other: Policy, lane: str) -> str:
        """Return the values of another policy file that differ for a lane; empty if none does."""
        try:
            other_policy = other.overridden(*self.overrides).for_lane(lane)
        except PolicyError as error:
            return str(error)
        own_policy = self.policy.for_lane(lane)
        return ", ".join(
            f"{key} {encoded(getattr(other_policy, key))} instead of {encoded(getattr(own_policy, key))}"
            for key in LanePolicy.__struct_fields__
            if getattr(own_policy, key) != getattr(other_policy, key)
        )

    def sources(self, lane: str) -> dict[str, Source]:
        """Return the source of each key of a lane's policy."""
        found = dict.fromkeys(LanePolicy.__struct_fields__, BUILT_IN)
        overriding = {} if self.refused else self.overrides.tables
        for name in reversed([*covering(lane)]):  # from the widest table to the narrowest
            of_file = self.file.default_table if name == DEFAULT else self.file.tables.get(name, {})
            for source, table in (("file", of_file), ("override", overriding.get(name, {}))):
                found |= {key: Source(source, name) for key in table if key in found}
        stop = self.policy.pauses.stop(lane)  # pauses have rules of their own
        found[PAUSED] = Source("file" if stop.in_file else "override", stop.name) if stop else BUILT_IN
        return found


async def policy_in_force(redis: Redis, given: Policy, lane: str | None = None) -> PolicyInForce:
    """Return the policy of the fleet. If the tables in Redis do not fit the file, only their pauses hold.

    given: the policy of the settings, used in place of the workers' if it is not NO_POLICY. lane: if workers
    differ, the file of the worker that holds it counts, else the file that most workers use.
    """
    holder = ""
    found = await overrides.read(redis)
    known = await workers_policies(redis)
    if given is not NO_POLICY:
        origin, digest, file = Origin.GIVEN, digest_of(given), given
    elif known.files:
        owner = await redis.hget(keys.lane(lane), "owner") if lane is not None else None  # type: ignore[misc]
        holder, digest = known.instances.get(text_of(owner or b""), ("", ""))
        if digest not in known.files:
            holder, digest = "", min(known.files, key=lambda one: (-len(known.workers[one]), one))
        origin, file = Origin.WORKERS, known.files[digest]
    else:
        origin, digest, file = Origin.ASSUMED, NO_FILE, NO_POLICY
    refused = ""
    try:
        policy = file.overridden(*found)
    except PolicyError as error:
        policy, refused = file.with_pauses(file.pauses_with(found)), str(error)
    return PolicyInForce(origin, digest, file, policy, found, known, holder, refused)


async def workers_policies(redis: Redis) -> WorkersPolicies:
    """Read the policy files that the live workers publish."""
    workers: dict[str, list[str]] = {}
    refusals: dict[str, str] = {}
    instances: dict[str, tuple[str, str]] = {}
    behind: list[str] = []
    version = number_of(await redis.get(keys.POLICY_VERSION)) or 0
    for instance, report in sorted((await worker_reports(redis)).items()):
        about = report.registration
        name = about.name if about else instance
        workers.setdefault(about.policy if about else "", []).append(name)
        if about:
            instances[instance] = (name, about.policy)
        if report.policy_refused:
            refusals[name] = report.policy_refused
        if report.policy_version is not None and (number_of(report.policy_version.encode()) or 0) < version:
            behind.append(name)
    digests = [digest for digest in workers if digest not in {"", NO_FILE}][:MAX_FILES]
    texts = await redis.mget([keys.policy_file(digest) for digest in digests]) if digests else []
    files = {NO_FILE: Policy()} if NO_FILE in workers else {}
    faults: dict[str, str] = {}
    for digest, text in zip(digests, texts, strict=True):
        try:
            if text is None:
                raise PolicyError("it is not published yet")  # noqa: TRY301 reported as any other fault
            files[digest] = read_published(text)
        except PolicyError as error:
            faults[digest] = str(error)
    return WorkersPolicies(workers, files, faults, refusals, behind, instances)


def short(digest: str) -> str:
    """Return what people are shown of a digest."""
    return digest[:DIGEST_SHOWN_CHARS]


def listed(names: Sequence[str]) -> str:
    """Return names of workers for people."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def encoded(value: Any) -> str:
    """Return a value as `policy set` reads it."""
    return msgspec.json.encode(value).decode()
