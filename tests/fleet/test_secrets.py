"""Secret= of a container: what is accepted, and what becomes of it."""

from __future__ import annotations

import pytest

from fleet import container, secrets
from fleet.secrets import Secret


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("db", Secret("db", target="/run/secrets/db")),
        ("db,target=pw,mode=0400,uid=7,gid=8", Secret("db", False, "/run/secrets/pw", 7, 8, 0o400)),
        ("db,target=/etc/pw", Secret("db", target="/etc/pw")),
        ("db,type=env", Secret("db", True, "db")),
        ("db,type=env,target=DB_PASSWORD", Secret("db", True, "DB_PASSWORD")),
    ],
)
def test_what_is_accepted(text: str, wanted: Secret) -> None:
    """Quadlet's forms."""
    assert secrets.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "../x", "registry/a", "db,type=file", "db,mode=0888", "db,mode=7777", "db,uid=x", "db,target=../x", "db,target=/a/../b",
     "db,target=/a:b", "db,type=env,mode=0400", "db,type=env,target=1A", "db,nonsense"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    """With a sentence, and before anything is stored."""
    with pytest.raises(ValueError, match=r"\w"):
        secrets.parse(text)


@pytest.mark.parametrize(
    ("image", "registry"),
    [("box", "docker.io"), ("library/box:1", "docker.io"), ("quay.io/a/b@sha256:0", "quay.io"), ("localhost/a", "localhost"),
     ("127.0.0.1:5000/a:1", "127.0.0.1:5000")],
)  # fmt: skip
def test_whose_image_it_is(image: str, registry: str) -> None:
    """As the engine reads its name."""
    assert secrets.registry_of(image) == registry


def _asked(*lines: str, kept: dict[str, bytes]) -> dict[str, object]:
    spec = container.ContainerSpec()
    for line in ("Image=a.example/x", *lines):
        key, _, value = line.partition("=")
        container.KEYS[key](spec, value)
    return container.run_arguments(spec, "u.service", {}, {}, {}, kept)


def test_what_a_runner_is_handed() -> None:
    """Files apart, variables among the others, the login of the image's registry."""
    kept = {"a": b"one\n", "b": b"\xff", "registry/a.example": b'{"username": "u", "password": "p"}'}
    asked = _asked("Secret=a,type=env,target=A", "Secret=b", kept=kept)
    assert "A=one" in asked["create"]["Env"]
    assert asked["secrets"] == [(Secret("b", target="/run/secrets/b"), b"\xff")]
    assert asked["login"] == {"username": "u", "password": "p"}
    with pytest.raises(ValueError, match="argosy secret set c"):
        _asked("Secret=c", kept=kept)
    with pytest.raises(ValueError, match="is no text"):
        _asked("Secret=b,type=env", kept=kept)


def test_what_must_be_read() -> None:
    """No login for an image that is never fetched."""
    spec = container.ContainerSpec(image="x", pull="never", secrets=[Secret("a"), Secret("a", True, "A")])
    assert container.secret_names(spec) == ["a"]
    spec.pull = "missing"
    assert container.secret_names(spec) == ["a", "registry/docker.io"]
