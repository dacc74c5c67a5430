#!/usr/bin/env python3
"""Adds up what the suites of `./dev test` reported and prints the summary.

Usage: count.py REPORTS SUITE...          a line per suite, then `N passed, N failed`; exits 1 when anything failed
       count.py --failed-output FILE      the output of the failed tests of a `go test -json` file

A suite leaves SUITE.status (its exit code), SUITE.out (what it printed), and where its runner can, SUITE.xml (JUnit), a
folder SUITE with TEST-*.xml (Surefire) or SUITE.json (`go test -json`). A suite that failed without a failed test counts
as one failure."""
import json
import pathlib
import re
import sys
import xml.etree.ElementTree as tree


def junit(files):
    passed = failed = skipped = 0
    for file in files:
        for case in tree.parse(file).getroot().iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            elif case.find("skipped") is not None:
                skipped += 1
            else:
                passed += 1
    return passed, failed, skipped


def go_json(file):
    outcomes = [e["Action"] for e in go_events(file) if e.get("Test") and "/" not in e["Test"]]
    return outcomes.count("pass"), outcomes.count("fail"), outcomes.count("skip")


def go_events(file):
    for line in file.read_text().splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def go_failed_output(file):
    events = list(go_events(file))
    failed = {e.get("Test") for e in events if e["Action"] == "fail"}
    for e in events:
        if e["Action"] == "output" and (e.get("Test") in failed or not e.get("Test")):
            sys.stdout.write(e["Output"])
    for line in file.read_text().splitlines():
        if not line.startswith("{"):
            print(line)


def printed(text):
    """Sums of cargo test's `test result:` lines, or the last plain `N passed, N failed` line."""
    cargo = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text, re.M)
    if cargo:
        return tuple(sum(int(row[i]) for row in cargo) for i in range(3))
    plain = re.findall(r"^(\d+) passed, (\d+) failed$", text, re.M)
    return (*map(int, plain[-1]), 0) if plain else (0, 0, 0)


def count(reports, suite):
    if (reports / f"{suite}.xml").exists():
        return junit([reports / f"{suite}.xml"])
    if list((reports / suite).glob("TEST-*.xml")):
        return junit((reports / suite).glob("TEST-*.xml"))
    if (reports / f"{suite}.json").exists():
        return go_json(reports / f"{suite}.json")
    return printed((reports / f"{suite}.out").read_text(errors="replace"))


def main():
    if sys.argv[1] == "--failed-output":
        go_failed_output(pathlib.Path(sys.argv[2]))
        return 0
    reports, total = pathlib.Path(sys.argv[1]), [0, 0, 0]
    for suite in sys.argv[2:]:
        status = int((reports / f"{suite}.status").read_text())
        passed, failed, skipped = count(reports, suite)
        if status != 0 and failed == 0:
            failed = 1
        elif status == 0 and passed == 0:
            passed = 1      # a suite that only says yes or no
        print(f"{suite:12} {passed:5} passed {failed:4} failed {skipped:4} skipped")
        total = [a + b for a, b in zip(total, (passed, failed, skipped))]
    print(f"{total[0]} passed, {total[1]} failed")
    return 1 if total[1] else 0


sys.exit(main())
