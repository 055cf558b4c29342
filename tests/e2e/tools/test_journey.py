"""The number of source files that a fetch enters."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MOST_IN_A_RUN = 56
MOST_IN_A_WORKER = 35
PROGRESS = {"worker/inspect/snapshot.py", "worker/observability/percentiles.py"}
"""Entered by the progress of a run that takes more than a few seconds, as on a busy machine."""
TIMERS = {"worker/intake/inbox.py", "worker/intake/arq_queue.py", "jobs/scripts/sweep.py"}
"""Files of periodic work, which a slow fetch may enter on a busy machine."""

BRACES = re.compile(r"\{([\w,]+)\}")

SPECIAL_CASES = {
    f"worker/fetch/{name}.py"
    for name in (
        *("cases/handover", "cases/host_signals", "cases/redirect", "cases/resume", "cases/stored_bodies"),
        *("cases/robots_txt", "cases/special", "cases/start_marker", "cases/unattempted"),
        *("error_mapping", "isolation", "rules/crashes", "rules/range_rules", "rules/redirects"),
        "rules/stale_fallback",
    )
}


def test_a_run_of_one_url_enters_few_files() -> None:
    """The worker enters at most 35 files, the run 56. The architecture page lists each of them."""
    command = [sys.executable, "-m", "tools.journey", "--run"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    files, in_worker = files_in(printed.stdout), files_in(printed.stdout.partition("in the command")[0])

    assert {"worker/fetch/run.py", "worker/local/run.py", "jobs/client/submit.py"} <= files
    assert set() == SPECIAL_CASES & files
    assert len(in_worker) <= MOST_IN_A_WORKER
    assert len(files) <= MOST_IN_A_RUN
    assert set() == files - documented()


def files_in(printed: str) -> set[str]:
    """Return the files that tools.journey has printed, without those of timers."""
    return set(re.findall(r"^  (\S+\.py) ", printed, re.MULTILINE)) - PROGRESS - TIMERS


def documented() -> set[str]:
    """Return the files that the architecture page names for a plain GET."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    story = page.partition("### Files on the way")[2].partition("Not entered")[0]
    files = set()
    for code in re.findall(r"`(\S+\.py)`", story):
        names = BRACES.search(code)
        files |= {BRACES.sub(name, code) for name in names[1].split(",")} if names else {code}
    return files
