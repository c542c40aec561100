"""Programs that must not compile, each for its stated reason.

All of them stand in one translation unit, one line each, and the compiler is asked once: every
line must carry an error of its own that matches the reason. A control unit with the legal
counterparts must compile, or the headers themselves would be at fault.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from baton_scheduler import Reply, transitions

INCLUDE = Path(__file__).parents[3] / "scheduler_cpp" / "include"

PREAMBLE = """
#include <span>
#include "baton/scheduler.h"
using namespace baton;
"""

NO_COPY = r"deleted|implicitly-deleted"
NO_ACCESS = r"private|inaccessible|no matching|could not convert"
NO_MEMBER = r"no member named|no matching"
NO_LVALUE = r"discards qualifiers|passing .* as 'this'|no matching|rvalue|cannot bind"
IGNORED = r"ignoring return"
NO_CONVERSION = r"no matching|cannot convert|no known conversion|could not convert|incompatible"

# name: (parameters, one statement, reason)
MISUSES = {
    "copy an owned page": ("OwnedPage& p", "OwnedPage q = p;", NO_COPY),
    "copy a sealed reference silently": ("SealedPage& p", "SealedPage q = p;", NO_COPY),
    "copy a leased page": ("LeasedPage& p", "LeasedPage q = p;", NO_COPY),
    "assign over a leased page": ("LeasedPage& p, LeasedPage& q", "p = std::move(q);", NO_COPY),
    "copy a slot": ("Slot& s", "Slot t = s;", NO_COPY),
    "copy a page table": ("PageTable& t", "PageTable u = t;", NO_COPY),
    "copy the ticket of an offload": ("OffloadTicket& t", "OffloadTicket u = t;", NO_COPY),
    "land an offload and keep its ends": ("OffloadTicket& t", "t.land();", NO_LVALUE),
    "offload a page that is still written": (
        "OwnedPage& p, BlankHostPage& h",
        "OffloadTicket t(std::move(p), std::move(h), kRoot);",
        NO_CONVERSION,
    ),
    "offload over a copy that can be read": (
        "SealedPage& p, HostPage& h",
        "OffloadTicket t(std::move(p), std::move(h), kRoot);",
        NO_CONVERSION,
    ),
    "copy a host page": ("HostPage& h", "HostPage i = h;", NO_COPY),
    "forge a host page": ("SealedPage& p", "HostPage h(std::move(p));", NO_ACCESS),
    "seal a host page and keep writing": ("BlankHostPage& h", "auto s = h.seal(kRoot);", NO_LVALUE),
    "put a host page into a page table": (
        "PageTable& t, HostPage& h",
        "t.append(std::move(h));",
        NO_CONVERSION,
    ),
    "a host page's number for a page's": (
        "HostPage& h",
        "PageId p = h.id();",
        NO_CONVERSION + "|invalid conversion",
    ),
    "restore from a host page that is still written": (
        "std::vector<BlankHostPage>& h",
        "auto t = FetchTicket::issue(std::move(h));",
        NO_CONVERSION,
    ),
    "copy a window": ("WindowTable& t", "WindowTable u = t;", NO_COPY),
    "copy a state": ("StatePages& s", "StatePages t = s;", NO_COPY),
    "put one request's state over another's": (
        "StatePages& s, StatePages& t",
        "s = std::move(t);",
        NO_COPY,
    ),
    "write the state into a snapshot": (
        "StatePages& s, SealedPage& p",
        "s.start(std::move(p));",
        NO_CONVERSION,
    ),
    "go on after a snapshot in a sealed page": (
        "StatePages& s, SealedPage& p",
        "s.leave_snapshot_at(4, std::move(p));",
        NO_CONVERSION,
    ),
    "start from a state that is still written": (
        "PagePool& p, OwnedPage& o",
        "StatePages s(p, std::move(o));",
        NO_CONVERSION,
    ),
    "advance a state and forget its snapshot": (
        "StatePages& s",
        "s.advance(4);",
        IGNORED,
    ),
    "write a sealed page of a window": (
        "WindowTable& t, LeasedPage& p",
        "t.append(std::move(p));",
        NO_CONVERSION,
    ),
    "copy the ticket of a fetch": ("FetchTicket& t", "FetchTicket u = t;", NO_COPY),
    "copy a row claim": ("RowClaim& c", "RowClaim d = c;", NO_COPY),
    "copy a step": ("Step& s", "Step t = s;", NO_COPY),
    "copy a scheduler": ("Scheduler& s", "Scheduler t = s;", NO_COPY),
    "copy a pool": ("PagePool& p", "PagePool q = p;", NO_COPY),
    "seal a page and keep it": ("OwnedPage& p", "auto s = p.seal(kRoot);", NO_LVALUE),
    "seal twice": (
        "OwnedPage& p",
        "auto s = std::move(p).seal(kRoot).seal(kRoot);",
        NO_MEMBER,
    ),
    "seal and drop the page": ("OwnedPage& p", "std::move(p).seal(kRoot);", IGNORED),
    "freeze a page and keep it": ("OwnedPage& p", "auto s = p.freeze();", NO_LVALUE),
    "freeze and drop the page": ("OwnedPage& p", "std::move(p).freeze();", IGNORED),
    "park without proof": ("Draining& d", "auto f = std::move(d).on(ParkSettled{});", NO_ACCESS),
    "park a decoding request at once": (
        "Decoding& d",
        "Parked p = std::move(d).on(TurnParked{1});",
        NO_CONVERSION + "|conversion from",
    ),
    "share a writable page": ("OwnedPage& p", "auto q = p.share();", NO_MEMBER),
    "write a sealed page": ("Decoding& d, SealedPage& p", "d.grow(std::move(p));", NO_CONVERSION),
    "put a leased page into a table": (
        "PageTable& t, LeasedPage& p",
        "t.append(std::move(p));",
        NO_CONVERSION,
    ),
    "lease a writable page": ("OwnedPage& p", "LeasedPage l(std::move(p));", NO_CONVERSION),
    "copy on write without giving up the source": (
        "SealedPage& p, OwnedPage& q, PageCopy& c",
        "auto w = p.copy_on_write(std::move(q), c);",
        NO_LVALUE,
    ),
    "copy on write and drop the result": (
        "SealedPage& p, OwnedPage& q, PageCopy& c",
        "std::move(p).copy_on_write(std::move(q), c);",
        IGNORED,
    ),
    "allocate and drop the page": ("PagePool& p", "p.allocate();", IGNORED),
    "free a page by number": ("PagePool& p", "p.to_free(PageId{1});", NO_ACCESS),
    "free an owned page by hand": (
        "PagePool& p, OwnedPage& o",
        "p.free_owned(o.id());",
        NO_ACCESS,
    ),
    "free a leased page by hand": (
        "PagePool& p, LeasedPage& l",
        "p.release(l.id());",
        NO_ACCESS,
    ),
    "forge an owned page": ("PagePool& p", "OwnedPage q(p, PageId{1});", NO_ACCESS),
    "forge a sealed page": ("PagePool& p", "SealedPage q(p, PageId{1});", NO_ACCESS),
    "forge a slot": ("SlotPool& p", "Slot s(p, SlotId{1});", NO_ACCESS),
    "forge the ticket of a fetch": ("", "FetchTicket t;", NO_ACCESS),
    "forge the proof of idleness": ("", "Idle i;", NO_ACCESS),
    "retract without proof": ("Decoding& d", "auto r = std::move(d).on(Retract{});", NO_ACCESS),
    "settle without proof": ("Draining& d", "auto f = std::move(d).on(Settled{});", NO_ACCESS),
    "settle with somebody's word": (
        "Draining& d",
        "auto f = std::move(d).on(Settled{true});",
        NO_CONVERSION,
    ),
    "forge a decoding request": (
        "SequencePtr& q, Slot& s, PageTable& t",
        "Decoding d(std::move(q), std::move(s), std::move(t), 1);",
        NO_ACCESS,
    ),
    "forge a finished request": ("", "Finished f;", NO_ACCESS),
    "a queued request out of nothing": ("", "Queued q;", r"no matching"),
    "a page number for a slot number": ("OwnedPage& p", "SlotId s = p.id();", NO_CONVERSION),
    "an integer for a page number": ("", "PageId p = 3;", NO_CONVERSION + "|invalid conversion"),
    "transition and keep the old state": ("Decoding& d", "auto x = d.on(Cancelled{});", NO_LVALUE),
    "transition and drop the new state": (
        "Queued& q",
        "std::move(q).on(Cancelled{});",
        IGNORED,
    ),
    "admit without a slot": (
        "Queued& q, PageTable& t",
        "auto p = std::move(q).on(AdmittedToCompute{std::move(t)});",
        NO_CONVERSION,
    ),
    "fetch without a ticket": (
        "Queued& q, Slot& s, PageTable& t",
        "auto f = std::move(q).on(AdmittedToFetch{std::move(s), std::move(t)});",
        NO_ACCESS,
    ),
    "sample for a request that only prefills": (
        "Prefilling& p",
        "p.on(TokenSampled{1});",
        NO_CONVERSION,
    ),
    "complete without saying when": (
        "Scheduler& s, Step& t",
        "auto r = s.complete(t, {}, {});",
        NO_CONVERSION,
    ),
    "plan a third step into a queue of two": (
        "StepQueue<2>& q, StepQueue<3>& r",
        "q = r;",
        NO_CONVERSION + "|no match",
    ),
    "plan and drop the step": ("Scheduler& s", "s.plan(0);", IGNORED),
    "complete and ignore the answer": (
        "Scheduler& s, Step& t",
        "s.complete(t, {}, {}, 0);",
        IGNORED,
    ),
    "complete a step that nobody holds": (
        "Scheduler& s",
        "auto r = s.complete(s.plan(0), {}, {}, 0);",
        NO_LVALUE,
    ),
    "complete a number": (
        "Scheduler& s",
        "auto r = s.complete(7, {}, {}, 0);",
        f"{NO_CONVERSION}|{NO_LVALUE}",
    ),
    "forge a step": ("Scheduler& s, Plan& p", "Step t(s, p, 1);", NO_ACCESS),
    "a table row that lacks a cell": (
        "",
        "constexpr auto r = table_detail::row(Reply::kAccepted);",
        r"cell of this state's row is missing",
    ),
    "a table that lacks a row": (
        "",
        "constexpr auto t = table_detail::table(kTable.cells[0]);",
        r"a state's row is missing",
    ),
}


def _compile(source: Path) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.fail("no C++ compiler: install g++, or name one in CXX")
    flags = ["-std=c++20", "-fsyntax-only", "-Werror=unused-result", "-fno-diagnostics-show-caret"]
    limit = "-ferror-limit=0" if "clang" in compiler else "-fmax-errors=0"
    command = [compiler, *flags, limit, f"-I{INCLUDE}", str(source)]
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _errors_by_line(source: Path, stderr: str) -> dict[int, str]:
    """Everything said about each line of `source`, instantiation notes included."""
    said: dict[int, str] = {}
    # A refusal inside a header follows the lines that lead to it from here.
    start = rf"\n(?=[^ \n]*: In |{re.escape(str(source))}:\d+:\d+: error: )"
    blocks = re.split(start, stderr)
    for block in blocks:
        for line in re.findall(re.escape(str(source)) + r":(\d+):", block):
            said[int(line)] = said.get(int(line), "") + block
    return {line: text for line, text in said.items() if "error:" in text}


def _illegal_cells() -> dict[str, tuple[str, str, str]]:
    return {
        f"{state} on {event}": (
            f"{state}& s, {event}& e",
            "(void)std::move(s).on(std::move(e));",
            r"no matching function|no viable|cannot convert|no known conversion|"
            r"cannot bind|could not convert",
        )
        for state, event, reply, _ in transitions()
        if reply is not Reply.ACCEPTED and state != "Finished"
    } | {
        f"Finished on {event}": (
            f"Finished& s, {event}& e",
            "(void)std::move(s).on(std::move(e));",
            r"no member named",
        )
        for state, event, reply, _ in transitions()
        if state == "Finished"
    }


def _check_all_refused(programs: dict[str, tuple[str, str, str]], source: Path) -> None:
    lines = [
        f"void f{i}({parameters}) {{ {statement} }}"
        for i, (parameters, statement, _) in enumerate(programs.values())
    ]
    source.write_text(PREAMBLE + "\n".join(lines) + "\n")
    first = PREAMBLE.count("\n") + 1
    said = _errors_by_line(source, _compile(source).stderr)
    compiled = [name for i, name in enumerate(programs) if first + i not in said]
    assert not compiled, f"these programs compile: {compiled}"
    for i, (name, (_, _, reason)) in enumerate(programs.items()):
        text = said[first + i].replace("‘", "'").replace("’", "'")
        assert re.search(reason, text), f"{name}: refused for another reason:\n{text}"


def test_misuse_of_handles_does_not_compile(tmp_path: Path) -> None:
    _check_all_refused(MISUSES, tmp_path / "misuse.cpp")


def test_illegal_transitions_do_not_compile(tmp_path: Path) -> None:
    _check_all_refused(_illegal_cells(), tmp_path / "illegal.cpp")


def test_legal_programs_compile(tmp_path: Path) -> None:
    """The same spelling with what is allowed: so the refusals above are about the misuse."""
    lines = [
        f"void g{i}({state}& s, {event}& e) "
        + (
            "{ s.on(std::move(e)); }"
            if to == state
            else "{ [[maybe_unused]] auto next = std::move(s).on(std::move(e)); }"
        )
        for i, (state, event, reply, to) in enumerate(transitions())
        if reply is Reply.ACCEPTED
    ]
    lines += [
        "void h0(OwnedPage& p) { auto s = std::move(p).seal(kRoot); auto t = s.share(); }",
        "void h1(SealedPage& p, OwnedPage& q, PageCopy& c) "
        "{ auto w = std::move(p).copy_on_write(std::move(q), c); }",
        "void h2(Decoding& d, OwnedPage& p) { d.grow(std::move(p)); }",
        "void h7(SealedPage& p, BlankHostPage& h) "
        "{ OffloadTicket t(std::move(p), std::move(h), kRoot); std::move(t).land(); }",
        "void h8(std::vector<HostPage>& h) { auto t = FetchTicket::issue(std::move(h)); }",
        "void h5(StatePages& s, OwnedPage& p, OwnedPage& q) "
        "{ s.start(std::move(p)); s.leave_snapshot_at(4, std::move(q)); "
        "if (s.advance(4)) s.seal_snapshot(kRoot); }",
        "void h6(WindowTable& t, OwnedPage& p) { t.append(std::move(p)); t.seal_next(kRoot); }",
        "void h3(SealedPage& p) { LeasedPage l(std::move(p)); }",
        "void h4(Scheduler& s) { auto t = s.plan(0); auto r = s.complete(t, {}, {}, 0); }",
    ]
    source = tmp_path / "legal.cpp"
    source.write_text(PREAMBLE + "\n".join(lines) + "\n")
    result = _compile(source)
    assert result.returncode == 0, result.stderr
