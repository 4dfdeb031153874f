"""Fixtures of the tests that download: a cache of their own, a server, and no waiting."""

from __future__ import annotations

import pytest

from limbeck.zoo.index import SHIPPED, WEIGHTS
from limbeck.zoo.index import entries as shipped_entries
from tests.zoo.servers import serving


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no setting of this machine that changes where students come from."""
    for name in ("LIMBECK_OFFLINE", "HF_HUB_OFFLINE", "LIMBECK_MIRROR", "LIMBECK_ZOO", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    return tmp_path / "cache" / "students"


@pytest.fixture
def web(cache, monkeypatch):
    """A server; downloads come in pieces of 1 kB and try again at once."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr("limbeck.zoo.fetching.WAIT", 0.0)
    close_session()  # a client of another test has read other proxies
    with serving() as server:
        yield server
    close_session()


@pytest.fixture(scope="session")
def shipped():
    """A small student of the zoo: its card's bytes, its weights' bytes, and its card."""
    card, _ = shipped_entries(SHIPPED)["resnet8w4.digits_kd"]
    weights = (SHIPPED / WEIGHTS / card.file).read_bytes()
    return (SHIPPED / "cards" / f"{card.name}.json").read_bytes(), weights, card
