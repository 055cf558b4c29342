"""The links of the front page."""

import pytest

from fetchfleet.worker.console.pages.fleet_page import link_of
from fetchfleet.worker.inspect.problems import FleetProblem, ProblemKind, Severity


def problem(kind: ProblemKind, *hosts: str) -> FleetProblem:
    """Return a problem."""
    return FleetProblem(kind, Severity.BAD, "title", "detail", "breaker", hosts)


@pytest.mark.parametrize("kind", ProblemKind)
def test_every_problem_has_a_link(kind: ProblemKind) -> None:
    """It leads to a page of the console."""
    link = link_of(problem(kind, "a.example"))

    assert link.href.startswith("/")
    assert link.text


def test_a_problem_of_hosts_leads_to_the_host_or_to_the_list() -> None:
    """The name is quoted."""
    assert "/hosts/2001%3Adb8%3A%3A1" == link_of(problem(ProblemKind.HOSTS, "2001:db8::1")).href
    assert "/hosts?state=breaker" == link_of(problem(ProblemKind.HOSTS, "a.example", "b.example")).href
    assert "/dead?reason=poison" == link_of(problem(ProblemKind.POISON)).href
