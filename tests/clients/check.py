"""Lets programs that nobody here wrote read what ggufsmith writes, and compares what they say. Run by `make clients`.

    python tests/clients/check.py [NAME...]      (names of checks; all by default)

The models are two published ones, in the type that they were published in; what is made of them has to give the same
answers. Every comparison is printed, and a summary at the end. Exits with 1 if a comparison failed, or a check did not
end in time. What is not installed cannot be checked: that is no failure, and the summary says so with the reason.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass

from checks import CHECKS
from findings import FAILED, MISSING, OK, Finding, NotInstalledError

MINUTES = 30  # for each check; those that run models need some on two slow cores


@dataclass(frozen=True)
class Summary:
    """Of one check. counts: of each verdict. notable: the lines of all that is not as expected."""

    name: str
    counts: Counter[str]
    notable: list[str]

    def __str__(self) -> str:
        counted = ", ".join(
            f"{self.counts[verdict]} {verdict}" for verdict in (OK, FAILED, MISSING) if self.counts[verdict]
        )
        return f"{self.name}: {counted or 'nothing compared'}"


def show(finding: Finding) -> None:
    print(f"{finding.verdict}\t{finding.what}", flush=True)


def alone(name: str) -> None:
    """Run one check in this process."""
    try:
        for finding in CHECKS[name]():
            show(finding)
    except NotInstalledError as error:
        show(Finding(MISSING, str(error)))
    except Exception as error:
        show(Finding(FAILED, f"{type(error).__name__}: {error}".replace("\n", " ")))


def end(process: "subprocess.Popen[str]") -> None:
    """Kill a check, and with it the programs that it runs."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def run(name: str) -> Summary:
    """Run one check in a process of its own, so that one that hangs or crashes is nothing to the others."""
    print(f"---- {name}: {(CHECKS[name].__doc__ or '').splitlines()[0]}", flush=True)
    found = Summary(name, Counter(), [])

    def note(line: str) -> None:
        verdict, _, what = line.partition("\t")
        if what and verdict in (OK, FAILED, MISSING):
            found.counts[verdict] += 1
            if verdict != OK:
                found.notable.append(f"{verdict}: {name}: {what}")
        print(line.expandtabs(10), flush=True)

    command = [sys.executable, __file__, "--alone", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True)
    late = threading.Event()
    timer = threading.Timer(MINUTES * 60, lambda: (late.set(), end(process)))
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        note(line.rstrip("\n"))
    code = process.wait()
    timer.cancel()
    if late.is_set():
        note(f"{FAILED}\tdid not end within {MINUTES} minutes")
    elif code:
        note(f"{FAILED}\tended with exit code {code}")
    return found


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--alone"]:
        alone(words[1])
        return
    if unknown := [word for word in words if word not in CHECKS]:
        sys.exit(f"there is no check {', '.join(unknown)}. The checks are {', '.join(CHECKS)}.")
    summaries = [run(name) for name in words or CHECKS]
    print("---- summary")
    for summary in summaries:
        print(summary)
    for summary in summaries:
        print(*summary.notable, sep="\n", end="\n" if summary.notable else "")
    sys.exit(any(summary.counts[FAILED] for summary in summaries))


if __name__ == "__main__":
    main()
