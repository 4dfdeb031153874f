"""What goes wrong between here and a server: the errors of the Hugging Face hub's client, each as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from limbeck.errors import UserError

# Top packages of whatever the hub's client raises: its own errors and those of the HTTP client of its version.
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")
_ABSENT = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}
_UNREACHED = {
    *("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"),
    *("MaxRetryError", "NewConnectionError", "LocalEntryNotFoundError"),
}

Kind = Literal["absent", "refused", "offline", "name", "unreached", "broken", "server", "answer"]


class HubError(UserError):
    """The Hugging Face hub refused, or cannot be reached; says which of the two, and what to do."""


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong.

    kind: 'absent', there is no such repository or file, or it is hidden; 'refused', the token may not; 'offline', by a
        setting; 'name', of no repository; 'unreached'; 'broken', off on the way; 'server', which may do better the next
        time; 'answer', any other.
    said: what is wrong and what to do, without a subject.
    """

    kind: Kind
    said: str


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Raise HubError for what the hub's client raises inside; `failed` begins its sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = fault_of(error)
        if found is None:
            raise
        raise HubError(f"{failed}: {found.said}") from error


def of_client(error: BaseException) -> bool:
    """Whether an error is of a class of the hub's client, or of the HTTP client below it."""
    return type(error).__module__.split(".")[0] in _CLIENTS


def fault_of(error: BaseException, *, hub: bool = True) -> Fault | None:
    """What is wrong; None for an error that is not the client's.

    Args:
        hub: whether the hub was asked; False for another server, which knows no tokens of the hub.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    ours = [e for e in chain if of_client(e)]
    server = "the hub" if hub else "the server"
    if not ours and not isinstance(error, ConnectionError):
        return Fault("answer", f"{_line(error)}; try again later") if _origin(error) in _CLIENTS else None
    names = {type(one).__name__ for one in ours}
    if hub and names & _ABSENT:
        return Fault("absent", _NO_REPOSITORY)
    for one in ours:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            return _by_status(int(status), one, server, hub)
    if "LocalTokenNotFoundError" in names:
        return Fault("refused", "there is no token; run `hf auth login` or set HF_TOKEN")
    if names & {"HFValidationError", "HfUriError"}:
        return Fault("name", f"{_line(ours[0])}; name it OWNER/NAME")
    if "OfflineModeIsEnabled" in names:
        return Fault("offline", "huggingface_hub is offline; unset HF_HUB_OFFLINE and start again")
    if ours and not names & _UNREACHED:
        return Fault("broken", f"the connection broke off ({_line(ours[-1])}); the same command goes on with it")
    advice = "check the network and HF_ENDPOINT" if hub else "check the network"
    return Fault("unreached", f"{server} cannot be reached ({_line(chain[-1])}); {advice}")


_NO_REPOSITORY = (
    "there is no such repository, revision or file, or it is not public; check its name, or run `hf auth login`"
)


def _by_status(status: int, error: BaseException, server: str, hub: bool) -> Fault:
    """What an HTTP status says."""
    if status in (404, 410):
        plain = f"there is no such file (HTTP {status}); check the address"
        return Fault("absent", _NO_REPOSITORY if hub else plain)
    if status in (401, 403) and not hub:
        return Fault("refused", f"access is refused (HTTP {status}); log in, or ask its owner")
    if status == 401:
        said = "the token is missing or wrong, or there is no such repository; run `hf auth login` or set HF_TOKEN"
        return Fault("refused", said)
    if status == 403:
        return Fault("refused", "the token may not do this; take one with permission for it, or ask the owner")
    if status == 409:
        return Fault("answer", f"something else was there first ({_line(error)}); look at it and try again")
    if status == 416:
        return Fault("server", "the server has another file than before (HTTP 416); try again")
    detail = f" ({_line(error)})" if hub else ""
    return Fault(
        "server" if status >= 500 else "answer", f"{server} answers with HTTP {status}{detail}; try again later"
    )


def _origin(error: BaseException) -> str:
    """The top package of the code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]


def _line(error: BaseException) -> str:
    """An error's message in one line, cut."""
    text = " ".join(str(getattr(error, "server_message", None) or error).split()) or type(error).__name__
    return text[:160].rstrip(" .;:")
