"""Errors of the hub's client: one sentence for one fault, whether a student is pushed, fetched, or somebody else's."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import errors

from limbeck.errors import ConfigError, NotFetched, UserError
from limbeck.zoo import fetching
from limbeck.zoo.fetching import NoSuchFile, asked
from limbeck.zoo.hub_errors import HubError, fault_of, hub_errors

HUB, WEB = "hf://owner/name", "https://example.org/a.json"


class Answer:
    """As much of a response as is looked at."""

    def __init__(self, status: int) -> None:
        self.status_code = status


def http(status: int | None, kind: str = "HTTPError") -> Exception:
    """An error of an HTTP client, with a response where there is a status."""
    made: Any = type(kind, (Exception,), {"__module__": "httpx"})(f"{kind}\nof a test.")
    if status is not None:
        made.response = Answer(status)
    return made


def raised(error: Exception) -> Any:
    def ask() -> None:
        raise error

    return ask


def pushed(error: Exception) -> str:
    with pytest.raises(HubError) as caught, hub_errors("it is not pushed"):
        raise error
    return str(caught.value).removeprefix("it is not pushed: ")


def fetched(error: Exception, address: str, kind: type[UserError] = NotFetched) -> str:
    with pytest.raises(kind) as caught:
        asked(address, raised(error))
    return str(caught.value).removeprefix(f"{address}: ")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    for name in fetching.OFFLINE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("status", [401, 403, 404, 409, 410, 418, 429, 500, 503])
def test_push_and_fetch_from_the_hub_say_the_same(status: int) -> None:
    said = pushed(http(status))
    assert fetched(http(status), HUB) == said
    assert "\n" not in said
    assert ("token" in said) == (status in (401, 403))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "access is refused (HTTP 401); log in, or ask its owner"),
        (404, "there is no such file (HTTP 404); check the address"),
        (416, "the server has another file than before (HTTP 416); try again"),
        (429, "the server answers with HTTP 429; try again later"),
        (502, "the server answers with HTTP 502; try again later"),
    ],
)
def test_another_server_is_not_told_of_tokens(status: int, said: str) -> None:
    assert fetched(http(status), WEB) == said


def test_what_is_not_there_is_told_apart() -> None:
    for address in (HUB, WEB):
        fetched(http(404), address, NoSuchFile)
    hidden = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    hidden.response = Answer(401)  # how the hub answers for a repository that is not there or not public
    assert "no such repository, revision or file" in fetched(hidden, HUB, NoSuchFile)
    assert fetched(FileNotFoundError(2, "no"), "memory://a", NoSuchFile) == "there is no such file; check the address"
    assert "OWNER/NAME" in fetched(errors.HFValidationError("bad name"), HUB, ConfigError)


def test_only_faults_of_a_server_or_connection_are_tried_again() -> None:
    for error, tries in (
        (http(500), fetching.TRIES),
        (http(416), fetching.TRIES),
        (http(None, "ReadError"), fetching.TRIES),
        (http(None, "ConnectError"), 1),
        (http(404), 1),
        (http(403), 1),
        (errors.OfflineModeIsEnabled("offline"), 1),
    ):
        count = []
        with pytest.raises(NotFetched):
            asked(WEB, lambda error=error, count=count: count.append(1) or raised(error)())
        assert len(count) == tries, error


def test_no_network_names_what_to_look_at() -> None:
    error = http(None, "ConnectError")
    assert pushed(error) == "the hub cannot be reached (ConnectError of a test); check the network and HF_ENDPOINT"
    assert fetched(error, HUB) == f"{pushed(error)}, or set LIMBECK_OFFLINE=1"
    assert fetched(error, WEB).startswith(
        "the server cannot be reached (ConnectError of a test); check the network, or"
    )
    wrapped = errors.LocalEntryNotFoundError("not in the cache")
    wrapped.__cause__ = error
    assert pushed(wrapped) == pushed(error)


def test_other_errors_are_left_alone() -> None:
    assert fault_of(KeyError("mine")) is None
    with pytest.raises(KeyError, match="mine"):
        asked(WEB, raised(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"), hub_errors("it is not pushed"):
        raise KeyError("mine")
