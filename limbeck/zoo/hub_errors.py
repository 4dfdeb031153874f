"""The Hugging Face hub's errors, each as one sentence for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.errors import UserError

# Top packages of whatever the hub's client raises: its own errors and those of the HTTP client of its version.
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")


class HubError(UserError):
    """The Hugging Face hub refused, or cannot be reached; says which of the two, and what to do."""


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Raise HubError for what the hub's client raises inside; `failed` begins its sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = _said(error)
        if said is None:
            raise
        raise HubError(f"{failed}: {said}") from error


def _said(error: BaseException) -> str | None:
    """What is wrong and what to do; None for an error that is not the hub's."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    ours = [e for e in chain if type(e).__module__.split(".")[0] in _CLIENTS]
    if not ours and not isinstance(error, ConnectionError):
        return f"{_line(error)}; try again later" if _origin(error) in _CLIENTS else None
    for one in ours:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            return _status(int(status), one)
    names = {type(one).__name__ for one in ours}
    if "LocalTokenNotFoundError" in names:
        return "there is no token; run `hf auth login` or set HF_TOKEN"
    if names & {"HFValidationError", "HfUriError"}:
        return f"{_line(ours[0])}; name it OWNER/NAME"
    if "OfflineModeIsEnabled" in names:
        return "offline mode is on; unset HF_HUB_OFFLINE"
    return f"the hub cannot be reached ({type(chain[-1]).__name__}); check the network and HF_ENDPOINT"


def _origin(error: BaseException) -> str:
    """The top package of the code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]


def _status(status: int, error: BaseException) -> str:
    if status == 401:
        return "the token is missing or wrong, or there is no such repository; run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token may not do this; take one with write permission for this owner"
    if status == 404:
        return "no such repository or revision; check its name"
    if status == 409:
        return f"something else was there first ({_line(error)}); look at the repository and push again"
    return f"the hub answered {status} ({_line(error)}); try again later"


def _line(error: BaseException) -> str:
    """The first line of an error's message, cut."""
    text = " ".join(str(getattr(error, "server_message", None) or error).split())
    return text[:160].rstrip(" .;:")
