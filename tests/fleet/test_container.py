"""[Container]: what each of Quadlet's keys becomes, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import container
from fleet.container import ContainerSpec

QUADLET = set(
    """Image Rootfs Pull Retry RetryDelay AutoUpdate Exec Entrypoint WorkingDir RunInit ContainerName
    ServiceName Annotation Label Environment EnvironmentFile EnvironmentHost HttpProxy Secret Timezone User
    Group GroupAdd UserNS UIDMap GIDMap SubUIDMap SubGIDMap RemapUsers RemapUid RemapGid RemapUidSize Network
    NetworkAlias PublishPort ExposeHostPort HostName AddHost IP IP6 DNS DNSOption DNSSearch Volume Mount Tmpfs
    ReadOnly ReadOnlyTmpfs ShmSize VolatileTmp Memory PidsLimit Ulimit CgroupsMode AddDevice Sysctl
    AddCapability DropCapability NoNewPrivileges SeccompProfile AppArmor Mask Unmask SecurityLabelDisable
    SecurityLabelFileType SecurityLabelLevel SecurityLabelNested SecurityLabelType HealthCmd HealthInterval
    HealthTimeout HealthRetries HealthStartPeriod HealthOnFailure HealthLogDestination HealthMaxLogCount
    HealthMaxLogSize HealthStartupCmd HealthStartupInterval HealthStartupRetries HealthStartupSuccess
    HealthStartupTimeout Notify StopSignal StopTimeout ReloadCmd ReloadSignal Pod StartWithPod LogDriver LogOpt
    PodmanArgs GlobalArgs ContainersConfModule""".split()
)


def spec(*lines: str, image: str = "docker.io/library/nginx:1.27") -> ContainerSpec:
    out = ContainerSpec()
    for line in (f"Image={image}", *lines):
        key, _, value = line.partition("=")
        container.KEYS[key](out, value)
    return out


def body(*lines: str, ports: dict[str, int] | None = None, **environment: str) -> dict[str, Any]:
    found = spec(*lines)
    assert not container.finish(found)
    return container.create_arguments(found, "web.service", environment, {}, ports or {})


def host(*lines: str, ports: dict[str, int] | None = None) -> dict[str, Any]:
    return dict(body(*lines, ports=ports)["HostConfig"])


def refusal(line: str) -> str:
    with pytest.raises(ValueError) as caught:
        spec(line)
    return str(caught.value)


def test_every_key_of_quadlet_has_an_answer() -> None:
    """Honoured, refused with a reason, or ignored with a reason; no key is both."""
    assert set(container.KEYS) | set(container.IGNORED) == QUADLET
    assert not set(container.KEYS) & set(container.IGNORED)


@pytest.mark.parametrize("key", sorted(container.REFUSED))
def test_what_cannot_be_kept_is_refused_with_the_reason(key: str) -> None:
    """Never silently."""
    assert refusal(f"{key}=x") == f"is not supported: {container.REFUSED[key]}"


def test_the_least_container() -> None:
    """Only what Argosy itself decides is added."""
    assert body() == {
        "Image": "docker.io/library/nginx:1.27", "Env": [], "Labels": {"argosy.unit": "web.service"},
        "StopTimeout": 10, "AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "Tty": False,
        "OpenStdin": False,
        "HostConfig": {
            "NetworkMode": "default", "PidsLimit": 2048,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        },
    }  # fmt: skip


def test_the_process() -> None:
    """Exec is split and its variables replaced as in ExecStart; the image's own variables stay its own."""
    found = body(
        "Exec=serve --port ${PORT} 'a b' $LIST", "Entrypoint=/bin/sh -c", "User=app", "Group=staff",
        "WorkingDir=/srv", "HostName=web", "RunInit=yes", "GroupAdd=audio 27", "StopSignal=QUIT",
        "StopTimeout=30", 'Environment=A=1 "B=two words"', "Environment=LIST='x y'", 'Label=tier=front "d=x y"',
        PORT="8080", PATH="/usr/bin", A="0",
    )  # fmt: skip
    assert found["Cmd"] == ["serve", "--port", "8080", "a b", "x", "y"]
    assert found["Entrypoint"] == ["/bin/sh", "-c"]
    assert found["Env"] == ["PORT=8080", "A=1", "B=two words", "LIST=x y"]
    assert (found["User"], found["WorkingDir"], found["Hostname"]) == ("app:staff", "/srv", "web")
    assert (found["StopSignal"], found["StopTimeout"]) == ("SIGQUIT", 30)
    assert found["Labels"] == {"argosy.unit": "web.service", "tier": "front", "d": "x y"}
    assert found["HostConfig"]["Init"] is True
    assert found["HostConfig"]["GroupAdd"] == ["audio", "27"]


def test_an_entrypoint_may_be_a_list_in_json() -> None:
    """As Podman takes it."""
    assert body('Entrypoint=["/bin/a b", "-c"]')["Entrypoint"] == ["/bin/a b", "-c"]
    assert "is not a list of strings" in refusal('Entrypoint=["/bin/sh", x]')


def test_an_empty_assignment_resets_a_list() -> None:
    """As everywhere in unit files."""
    found = spec(
        "Volume=/a:/a", "Volume=/anonymous", "Volume=", "Volume=data:/b", "Mount=type=tmpfs,target=/t", "Mount=",
        "PublishPort=80:80", "PublishPort=", "AddCapability=CHOWN", "AddCapability=", "Environment=A=1",
        "Environment=", "DNS=1.1.1.1", "DNS=", "Tmpfs=/t", "Tmpfs=", "Ulimit=core=0", "Ulimit=", "Network=host",
        "Network=", "EnvironmentFile=/e", "EnvironmentFile=", "Label=a=b", "Label=", "AddHost=a:1.1.1.1", "AddHost=",
    )  # fmt: skip
    assert found.binds == ["data:/b"]
    for attribute in ("volumes", "anonymous_volumes", "mounts", "publish", "add_capabilities", "environment",
                      "dns", "tmpfs", "ulimits", "networks", "environment_files", "labels", "hosts"):  # fmt: skip
        assert not getattr(found, attribute), attribute


def test_volumes() -> None:
    """A path is a mount, whose source must be there; a name, and what is relabelled, is a bind."""
    found = body("Volume=/srv/a:/a:ro,rslave", "Volume=data:/b:nocopy", "Volume=/c", "Volume=/d:/d:Z")
    assert found["HostConfig"]["Mounts"] == [
        {"Type": "bind", "Source": "/srv/a", "Target": "/a", "ReadOnly": True,
         "BindOptions": {"Propagation": "rslave"}},
    ]  # fmt: skip
    assert found["HostConfig"]["Binds"] == ["data:/b:nocopy", "/d:/d:Z"]
    assert found["Volumes"] == {"/c": {}}


def test_mounts() -> None:
    """bind, volume and tmpfs, in Podman's spellings."""
    found = host(
        "Mount=type=bind,src=/srv,dst=/a,ro", "Mount=type=tmpfs,destination=/t,tmpfs-size=64M,tmpfs-mode=1777",
        "Mount=type=volume,source=data,target=/v", "Tmpfs=/run:size=10m", "Tmpfs=/tmp",
    )  # fmt: skip
    assert found["Mounts"] == [
        {"Type": "bind", "Target": "/a", "ReadOnly": True, "Source": "/srv"},
        {"Type": "tmpfs", "Target": "/t", "ReadOnly": False,
         "TmpfsOptions": {"SizeBytes": 64 * 1024**2, "Mode": 0o1777}},
        {"Type": "volume", "Target": "/v", "ReadOnly": False, "Source": "data"},
    ]  # fmt: skip
    assert found["Tmpfs"] == {"/run": "size=10m", "/tmp": ""}


def test_a_read_only_container_has_room_for_what_passes() -> None:
    """ReadOnlyTmpfs=yes is Podman's default; what is mounted there otherwise stays."""
    assert host("ReadOnly=yes", "Volume=/srv:/run")["Tmpfs"] == {"/tmp": "", "/var/tmp": ""}
    found = host("ReadOnly=yes", "ReadOnlyTmpfs=no")
    assert found["ReadonlyRootfs"] is True
    assert "Tmpfs" not in found


def test_ports() -> None:
    """With an address, a protocol, a range, or none on the machine's side."""
    found = body(
        "PublishPort=8080:80", "PublishPort=127.0.0.1:53:53/udp", "PublishPort=[::1]:9000-9001:90-91",
        "PublishPort=443", "ExposeHostPort=7000-7001",
    )  # fmt: skip
    assert found["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
        "90/tcp": [{"HostIp": "::1", "HostPort": "9000"}],
        "91/tcp": [{"HostIp": "::1", "HostPort": "9001"}],
        "443/tcp": [{"HostIp": "", "HostPort": ""}],
    }
    assert sorted(found["ExposedPorts"]) == ["443/tcp", "53/udp", "7000/tcp", "7001/tcp", "80/tcp", "90/tcp", "91/tcp"]


@pytest.mark.parametrize(("name", "number"), [("http", 31000), ("PORT", 31000), ("PORT_ADMIN", 31001)])
def test_a_published_port_may_be_one_of_the_units_own(name: str, number: int) -> None:
    """By the name of its Port=, or of the variable it is told in."""
    found = host(f"PublishPort={name}:80", ports={"http": 31000, "admin": 31001})
    assert found["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": str(number)}]}


def test_a_published_port_that_is_nobodys() -> None:
    """Said when the numbers are known."""
    found = spec("PublishPort=htp:80")
    assert found.named_ports() == ["htp"]
    with pytest.raises(ValueError, match="no Port= of .X-Argosy. is called 'htp'; there are: http"):
        container.create_arguments(found, "web.service", {}, {}, {"http": 1})


def test_network() -> None:
    """One network; names, name servers and hosts."""
    found = host("Network=front", "DNS=192.0.2.1", "DNSOption=ndots:2", "DNSSearch=a.example b.example",
                 "AddHost=db:192.0.2.7", "AddHost=up:host-gateway")  # fmt: skip
    assert found["NetworkMode"] == "front"
    assert (found["Dns"], found["DnsOptions"]) == (["192.0.2.1"], ["ndots:2"])
    assert found["DnsSearch"] == ["a.example", "b.example"]
    assert found["ExtraHosts"] == ["db:192.0.2.7", "up:host-gateway"]


def test_limits_and_rights() -> None:
    """Sizes in base 1024, capabilities in either spelling."""
    found = host(
        "Memory=512M", "PidsLimit=-1", "Ulimit=nofile=1024:2048", "Ulimit=core=-1", "ShmSize=64m",
        "AddCapability=NET_ADMIN cap_sys_time", "DropCapability=all", "AddDevice=/dev/fuse",
        "AddDevice=/dev/a:/dev/b:r", "Sysctl=net.core.somaxconn=1024", "NoNewPrivileges=yes",
        "SeccompProfile=/etc/seccomp.json", "AppArmor=strict", "SecurityLabelType=spc_t",
    )  # fmt: skip
    assert (found["Memory"], found["PidsLimit"], found["ShmSize"]) == (512 * 1024**2, -1, 64 * 1024**2)
    assert found["Ulimits"] == [{"Name": "nofile", "Soft": 1024, "Hard": 2048}, {"Name": "core", "Soft": -1, "Hard": -1}]
    assert found["CapAdd"] == ["CAP_NET_ADMIN", "CAP_SYS_TIME"]
    assert found["CapDrop"] == ["ALL"]
    assert found["Devices"] == [
        {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"},
        {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"},
    ]
    assert found["Sysctls"] == {"net.core.somaxconn": "1024"}
    assert found["SecurityOpt"] == [
        "no-new-privileges", "seccomp=/etc/seccomp.json", "apparmor=strict", "label=type:spc_t",
    ]  # fmt: skip
    assert host("SecurityLabelDisable=yes")["SecurityOpt"] == ["label=disable"]


def test_what_service_says_reaches_the_container() -> None:
    """The loader hands over OOMScoreAdjust= and CPUQuota= of [Service]."""
    found = spec()
    found.oom_score_adjust, found.nano_cpus = -500, 200_000_000
    made = container.create_arguments(found, "web.service", {}, {}, {})["HostConfig"]
    assert (made["OomScoreAdj"], made["NanoCpus"]) == (-500, 200_000_000)


def test_health() -> None:
    """Times in the engine's nanoseconds; without a command the image's own is run."""
    found = body("HealthCmd=curl -f http://localhost || exit 1", "HealthInterval=5s", "HealthTimeout=500ms",
                 "HealthRetries=2", "HealthStartPeriod=1min")  # fmt: skip
    assert found["Healthcheck"] == {
        "Test": ["CMD-SHELL", "curl -f http://localhost || exit 1"], "Interval": 5 * 10**9,
        "Timeout": 5 * 10**8, "Retries": 2, "StartPeriod": 60 * 10**9,
    }  # fmt: skip
    assert body("HealthCmd=none")["Healthcheck"] == {"Test": ["NONE"]}
    assert body('HealthCmd=["/bin/check", "-q"]')["Healthcheck"]["Test"] == ["CMD", "/bin/check", "-q"]
    assert "Test" not in body("HealthInterval=1s")["Healthcheck"]
    assert spec("Notify=healthy").notify_healthy
    assert not spec("Notify=no").notify_healthy


def test_what_the_supervisor_is_told() -> None:
    """Pull policy and retries go beside the body; reload and failure stay with the supervisor."""
    found = spec("Pull=never", "Retry=1", "RetryDelay=500ms", "ContainerName=front", "HealthOnFailure=kill",
                 "ReloadCmd=nginx -s reload", "EnvironmentFile=-/etc/web.env")  # fmt: skip
    asked = container.run_arguments(found, "web.service", {}, {"x": "y"}, {}, {})
    assert {k: v for k, v in asked.items() if k != "create"} == {
        "name": "front", "pull": "never", "retries": 1, "retry_delay": 0.5, "login": None, "secrets": [],
    }  # fmt: skip
    assert asked["create"]["Labels"] == {"argosy.unit": "web.service", "x": "y"}
    assert found.reload_cmd == ["nginx", "-s", "reload"]
    assert found.environment_files == [("/etc/web.env", True)]
    assert found.health_on_failure == "kill"
    assert spec("ReloadSignal=HUP").reload_signal == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Image=Nginx:1:2", "'Nginx:1:2' is not an image like docker.io/library/nginx:1.27"),
        ("Image=web.image", "'web.image': units of that kind are not supported; the name of an image is"),
        ("Pull=allways", "'allways' is not one of missing, always, never, newer (did you mean always?)"),
        ("Volume=data.volume:/a", "'data.volume': units of that kind are not supported; the name of a volume is"),
        ("Volume=./a:/a", "'./a' is neither an absolute path nor the name of a volume"),
        ("Volume=/a:b", "'b': an absolute path"),
        ("Volume=/a:/b:U", "option 'U' is not one of ro, rw, z, Z, nocopy, shared, slave, private, rshared, rslave, rprivate"),
        ("Mount=type=image,target=/a", "type 'image' is not one of bind, volume, tmpfs"),
        ("Mount=type=bind,source=/a", "a target= is missing: type=bind,source=/on/machine,target=/in/container"),
        ("Mount=type=tmpfs,target=/a,source=/b", "option 'source' is not one of mode, readonly, size, target, which type=tmpfs takes"),
        ("PublishPort=0:80", "'0' is not a port or a range of ports: 1 to 65535"),
        ("PublishPort=8000-8002:80-81", "8000-8002 and 80-81 are not ranges of one length"),
        ("PublishPort=80:80/icmp", "'icmp' is not one of tcp, udp, sctp"),
        ("PublishPort=PORT:80-81", "'PORT' is one port, and 80-81 are 2"),
        ("Network=web.network", "'web.network': units of that kind are not supported; the name of a network is"),
        ("Network=container:db", "'container:db' is not host, bridge, none or the name of a network of the engine"),
        ("AddCapability=NET_ADMN", "no capability is called 'NET_ADMN' (did you mean NET_ADMIN?)"),
        ("Ulimit=nofiles=1", "no limit is called 'nofiles' (did you mean nofile?); NAME=SOFT[:HARD] is accepted"),
        ("Ulimit=nofile=2:1", "'nofile=2:1': the soft limit is above the hard one"),
        ("Memory=1M", "'1M' is too small: the engine takes 6M or more"),
        ("Label=argosy.unit=x", "'argosy.unit': labels that start with argosy. are Argosy's own"),
        ("Environment=A", "'A' is not NAME=VALUE"),
        ("EnvironmentFile=web.env", "'web.env': an absolute path"),
        ("Notify=yes", "a container is not handed a notification socket; Notify=healthy waits for its HealthCmd="),
        ("HealthInterval=disable", "'disable' is Podman's; a time like 30s is accepted, or HealthCmd=none"),
        ("HealthInterval=infinity", "'infinity': a time that ends, as 30s"),
        ("StopSignal=SIGNOPE", "no signal is called 'SIGNOPE'"),
        ("LogDriver=k8s-file", "'k8s-file' is not one of json-file, local, journald, none (did you mean json-file?)"),
        ("AddDevice=-/dev/fuse", "a device that may be missing is not supported; the path of one that is there is"),
        ("DNS=none", "'none' is not an address like 192.0.2.1"),
        ("AddHost=db", "'db' is not NAME:ADDRESS or NAME:host-gateway"),
        ("ContainerName=-x", "'-x' is not a name: letters, digits and _ . -"),
    ],
)  # fmt: skip
def test_bad_values_are_told_what_is_accepted(line: str, text: str) -> None:
    """One sentence each."""
    assert refusal(line) == text


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["Group=staff"], ("Group", "needs a User=")),
        (["User=a:b", "Group=c"], ("Group", "User=a:b names a group already")),
        (["Network=a", "Network=b"], ("Network", "one network, not a, b")),
        (["Network=host", "PublishPort=80:80"], ("PublishPort", "has no meaning with Network=host")),
        (["Network=host", "HostName=a"], ("HostName", "has no meaning with Network=host")),
        (["ReloadCmd=a", "ReloadSignal=HUP"], ("ReloadSignal", "excludes ReloadCmd")),
        (["HealthCmd=none", "HealthOnFailure=kill"], ("HealthOnFailure", "needs a HealthCmd=")),
        (["HealthCmd=none", "Notify=healthy"], ("Notify", "needs a HealthCmd=")),
        (["LogDriver=none", "LogOpt=max-size=1m"], ("LogOpt", "has no meaning with LogDriver=none")),
        (["Volume=/a:/x", "Tmpfs=/x/"], ("Volume", "/x is mounted twice")),
        (["PublishPort=80:80", "PublishPort=80:81"], ("PublishPort", "80/tcp is published twice")),
    ],
)
def test_rules_between_keys(lines: list[str], problem: tuple[str, str]) -> None:
    """Found once the whole section is read."""
    assert container.finish(spec(*lines)) == [problem]


def test_an_image_is_needed() -> None:
    """The only key that a container cannot do without."""
    assert container.finish(ContainerSpec()) == [("Image", "a container needs one")]
