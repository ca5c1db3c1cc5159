"""Unit files: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import pytest

from fleet import constraints, environment, execution, names, syntax, unitfile
from fleet.spec import Output, UnitSpec
from fleet.syntax import UnitFileError

MINIMAL = "[Service]\nExecStart=/bin/true\n"


def spec(text: str, unit: str = "web@3.service") -> UnitSpec:
    return unitfile.load(unit, text)[0]


def problems(text: str, unit: str = "web.service") -> list[str]:
    with pytest.raises(UnitFileError) as caught:
        unitfile.load(unit, text)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_are_systemds() -> None:
    """systemd.service(5) and systemd.kill(5)."""
    found = spec(MINIMAL)
    assert (found.type, found.restart, found.restart_sec) == ("simple", "no", 0.1)
    assert (found.timeout_start_sec, found.timeout_stop_sec) == (90.0, 90.0)
    assert (found.start_limit_burst, found.start_limit_interval_sec) == (5, 10.0)
    assert (found.kill_mode, found.kill_signal, found.umask) == ("control-group", 15, 0o022)


def test_continuations_comments_and_quotes() -> None:
    """systemd.syntax(7): a comment inside a continued line is passed over."""
    found = spec("[Service]\nExecStart=/bin/echo 'a b' \\\n# no\n  \"c d\" e\\x41\n; no\n")
    assert found.exec_start[0].words == ("/bin/echo", "a b", "c d", "eA")


def test_prefixes_and_separate_commands() -> None:
    """``-`` ignores failure, ``@`` renames, ``;`` separates, ``\\;`` does not."""
    found = spec("[Service]\nType=oneshot\nExecStart=-/bin/false ; @/bin/sh name -c x \\;\n")
    first, second = found.exec_start
    assert first.ignore_failure and first.words == ("/bin/false",)
    assert second.argv0 == "name"
    assert second.words == ("/bin/sh", "-c", "x", ";")


def test_an_empty_assignment_resets_a_list() -> None:
    """As in systemd's drop-ins."""
    found = spec("[Service]\nExecStartPre=/bin/a\nExecStartPre=\nExecStartPre=/bin/b\nExecStart=/bin/c\n")
    assert [command.words for command in found.exec_start_pre] == [("/bin/b",)]


def test_specifiers() -> None:
    """The unit's own, and the machine's."""
    machine = unitfile.Machine("f" * 32, "alpha.example", "b" * 32)
    text = "[Service]\nExecStart=/bin/echo %n %N %p %i %H %l %m %b %t 100%%\n"
    found = unitfile.load("web@3.service", text, machine)[0]
    assert found.exec_start[0].words[1:] == (
        "web@3.service", "web@3", "web", "3", "alpha.example", "alpha", "f" * 32, "b" * 32, "/run", "100%",
    )  # fmt: skip


def test_variables_are_expanded_as_systemd_does() -> None:
    """``${A}`` is one word, ``$A`` is split, ``$$`` is a dollar, unknown is empty."""
    command = spec("[Service]\nExecStart=/bin/echo x${A}y $A $$A $NONE ${NONE}\n").exec_start[0]
    assert command.expand({"A": "1 2"}) == ["/bin/echo", "x1 2y", "1", "2", "$A", ""]


def test_placement_and_argosy_keys() -> None:
    """[X-Fleet] old and new names, [X-Argosy]."""
    found = spec(
        MINIMAL
        + '[X-Fleet]\nConflicts=a@*.service b.service\nX-ConditionMachineMetadata="zone=a" "zone=b"\n'
        + "[X-Argosy]\nPort=http admin:9000\nAnnounce=/services/web\nHealthCheck=tcp://:PORT\n"
        + "HealthInterval=500ms\nHealthRetries=3\nOnPartition=keep\n"
    )
    assert found.conflicts == ["a@*.service", "b.service"]
    assert found.machine_metadata == [("zone", "a"), ("zone", "b")]
    assert found.ports == [("http", 0), ("admin", 9000)]
    assert found.health is not None
    assert (found.health.kind, found.health.interval, found.health.retries) == ("tcp", 0.5, 3)
    assert found.on_partition == "keep"


def test_every_problem_is_told_at_once_with_its_place() -> None:
    """File, line, key, and the nearest known word."""
    found = problems(
        "[Servce]\nExecStart=/bin/a\n[Service]\nRestrt=no\nExecStart=/bin/a \"b\nRestart=sometimes\n"
        "TimeoutStopSec=soon\n[X-Argosy]\nPort=1x\nConflicts=a\n[X-Fleet]\nMachineMetadata=zone\nnonsense\n"
    )
    assert found == [
        "web.service:2:11: ExecStart: no section is called [Servce] (did you mean Service?)",
        "web.service:4:8: Restrt: unknown key in [Service] (did you mean Restart?)",
        'web.service:5:11: ExecStart: a " is not closed',
        "web.service:6:9: Restart: 'sometimes' is not one of no, on-success, on-failure, on-abnormal, "
        "on-watchdog, on-abort, always",
        "web.service:7:16: TimeoutStopSec: 'soon' is not a time span: 5, 5s, 2min 200ms or infinity are",
        "web.service:9:6: Port: '1x' is not NAME or NAME:NUMBER",
        "web.service:10:11: Conflicts: belongs to [Unit] or [X-Fleet], not to [X-Argosy]",
        f"web.service:12:17: MachineMetadata: 'zone' is not {constraints.ACCEPTED}",
        "web.service:13:1: 'nonsense' is not an assignment: Key=value is",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[Service]\n", "a service needs one"),
        ("[Service]\nExecStart=/bin/a\nExecStart=/bin/b\n", "more than one is only for Type=oneshot"),
        ("[Service]\nType=oneshot\nRestart=always\nExecStart=/bin/a\n", "is not for Type=oneshot"),
        ("[Service]\nType=dbus\nExecStart=/bin/a\n", "'dbus' is not one of simple, exec"),
        ("[Service]\nExecStart=+!/bin/a\n", "only one of the prefixes"),
        ("[Service]\nExecStart=/bin/a\nLimitNOFILE=9:5\n", "the soft limit is above the hard one"),
        ("[Service]\nExecStart=/bin/a\nCPUQuota=half\n", "is not a share of a processor"),
        ("[Service]\nExecStart=/bin/a\nRuntimeDirectory=../etc\n", "a relative path without . or .."),
        ("[Service]\nExecStart=/bin/a\nStandardOutput=file:log\n", "an absolute path must follow"),
        ("[Service]\nType=oneshot\nExecStart=/bin/a\nRuntimeMaxSec=5\n", "is not for Type=oneshot"),
        ("[Unit]\nConditionPathExists=etc\n" + MINIMAL, "an absolute path"),
        ("[Unit]\nConditionPathExist=/etc\n" + MINIMAL, "did you mean ConditionPathExists?"),
        (MINIMAL + "[X-Fleet]\nX-ConditionMachineBootID=1\n", "unknown key in [X-Fleet]"),
        ("[Service]\nExecStart=$X a\n", "may not be a variable"),
        ("[Service]\nExecStart=bin/a\n", "an absolute path or a bare name"),
        ("[Service]\nExecStart=/bin/a %q\n", "no specifier %q"),
        (MINIMAL + "[X-Fleet]\nGlobal=true\nMachineOf=a.service\n", "excludes MachineOf"),
        (MINIMAL + "[X-Argosy]\nAnnounce=/services/x\n", "needs a Port="),
        (MINIMAL + "[X-Argosy]\nPort=a\nAnnounce=/_argosy/x\n", "Argosy's own"),
        (MINIMAL + "[X-Argosy]\nHealthCheck=http://:PORT/\n", "has no Port="),
        (MINIMAL + "[X-Argosy]\nHealthCheck=ftp://:1\n", "is not http://"),
        (MINIMAL + "[X-Argosy]\nHealthInterval=1s\n", "need a HealthCheck="),
        ("ExecStart=/bin/a\n", "stands before any [Section]"),
    ],
)
def test_refused(text: str, part: str) -> None:
    """One sentence each, that says what is accepted."""
    assert any(part in problem for problem in problems(text))


def test_known_keys_without_effect_are_said_and_kept() -> None:
    """A unit file that worked elsewhere is taken; nothing is ignored in silence."""
    _, warnings = unitfile.load(
        "web.service", "[Unit]\nStopWhenUnneeded=yes\n[Service]\nPrivateTmp=yes\nExecStart=/bin/a\n[Install]\nWantedBy=x\n"
    )
    assert [warning.split(": ")[1:3] for warning in warnings] == [
        ["StopWhenUnneeded", "accepted, and without effect"], ["PrivateTmp", "accepted, and without effect"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("5s", 5), ("200ms", 0.2), ("2min 200ms", 120.2), ("1h30m", 5400), ("1M", 2629800), ("1y", 31557600)]
)
def test_durations(text: str, seconds: float) -> None:
    """systemd.time(7)."""
    assert syntax.duration(text) == pytest.approx(seconds)


def test_what_a_process_finds() -> None:
    """systemd.exec(5) and systemd.resource-control(5), as far as they are kept."""
    found = spec(
        "[Service]\nExecStart=/bin/a\nLimitNOFILE=10:20\nLimitCORE=infinity\nLimitCPU=1min\nMemoryMax=1G\n"
        "CPUQuota=150%\nTasksMax=7\nStandardOutput=append:/a\nStandardError=null\nRuntimeDirectory=a b/c\n"
        "RuntimeDirectoryMode=0700\nOOMScoreAdjust=-5\nSupplementaryGroups=x y\nNoNewPrivileges=yes\n"
    )
    assert found.resources.limits == {"NOFILE": (10, 20), "CORE": (-1, -1), "CPU": (60, 60)}
    assert execution.group_limits(found) == {"memory_max": 1024**3, "cpu_quota": 1.5, "tasks_max": 7}
    assert (found.standard_output, found.standard_error) == (Output("append", "/a"), Output("null"))
    given = execution.arguments(found, "start.0", found.exec_start[0], True, "argosy/m/x")
    assert given["directories"] == [["/run", "a", 0o700, True], ["/run", "b/c", 0o700, True]]
    assert given["cgroup"]["name"] == "argosy/m/x"
    assert execution.variables(found)["RUNTIME_DIRECTORY"] == "/run/a:/run/b/c"
    assert execution.leftovers(found, restarting=False) == (["/run/a", "/run/b/c"], [])


def test_a_privileged_command_runs_without_the_user() -> None:
    """Prefixes ``+`` and ``!``."""
    found = spec("[Service]\nUser=web\nExecStartPre=+/bin/p\nExecStart=/bin/a\n")
    step = execution.arguments(found, "start-pre.0", found.exec_start_pre[0], False, "")
    assert "user" not in step
    assert execution.arguments(found, "start.0", found.exec_start[0], True, "")["user"] == "web"


def test_who_may_speak_for_a_service() -> None:
    """NotifyAccess= is none, or main where the service must speak."""
    assert spec(MINIMAL).notify_access == "none"
    assert spec("[Service]\nType=notify\nExecStart=/bin/a\n").notify_access == "main"
    assert spec(MINIMAL + "WatchdogSec=1\n").notify_access == "main"
    assert spec(MINIMAL + "WatchdogSec=1\nNotifyAccess=all\n").notify_access == "all"


def test_conditions_and_asserts() -> None:
    """Signs before the argument; an empty one forgets those before it."""
    found = spec("[Unit]\nConditionHost=a\nConditionHost=\nConditionPathExists=|!/x\nAssertUser=root\n" + MINIMAL)
    assert [str(condition) for condition in found.conditions] == ["ConditionPathExists=|!/x", "AssertUser=root"]


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1\n# B=2\n; C=3\nD = x y  \nnonsense\n1E=5\n", {"A": "1", "D": "x y"}),
        ("A='it is \\n so'\nB=\"a \\\"b\\\" \\x\"\n", {"A": "it is \\n so", "B": 'a "b" \\x'}),
        ("A=don't\nB=2\n", {"A": "don't", "B": "2"}),
        ("A='one\ntwo'\nB=one \\\n  two\n", {"A": "one\ntwo", "B": "one   two"}),
        ("A=a\\ b\\\\\nB=\n", {"A": "a b\\", "B": ""}),
        ("A='x''y'\n", {"A": "xy"}),
    ],
)
def test_environment_files(text: str, variables: dict[str, str]) -> None:
    """systemd.exec(5), EnvironmentFile=."""
    assert environment.parse(text) == variables


def test_specifiers_are_replaced_behind_the_split() -> None:
    """What they stand for is one word, whatever is in it."""
    found = spec("[Service]\nExecStart=/bin/echo %I %%i\n", r"web@a\x20b.service")
    assert found.exec_start[0].words == ("/bin/echo", "a b", "%i")


def test_names_templates_and_ranges() -> None:
    """``{1..3}`` and ``{a,b}`` make names; templates know their instances."""
    assert names.expand("api@{1..3}") == ["api@1", "api@2", "api@3"]
    assert names.expand("x{a,b}@{08..10}")[:3] == ["xa@08", "xa@09", "xa@10"]
    one = names.parse("api@2")
    assert (one.full, one.template, one.instance, one.is_template) == ("api@2.service", "api@.service", "2", False)
    assert names.parse("api@.service").is_template
    for bad in ("", "a b", "x.socket", "@1", "a@b@c", "n" * 300):
        with pytest.raises(names.NameError_):
            names.parse(bad)
    with pytest.raises(names.NameError_, match="10000"):
        names.expand("x{1..20000}")
