"""Where students come from: addresses, repositories, folders, mirrors; and what a bad network or server gets."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

import limbeck
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, NotFetched, OutputError, UnknownName
from limbeck.zoo import find, load_student, weights_path
from limbeck.zoo.download import download
from limbeck.zoo.fetching import shown
from limbeck.zoo.hub import parse_hub
from limbeck.zoo.index import SHIPPED
from limbeck.zoo.outside import CARD_BYTES
from limbeck.zoo.sources import locate, weights
from tests.zoo.servers import COMMIT

NAME = "resnet8w4.digits_kd"
DEAD = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def address(web, shipped):
    """The address of a card on the server, with its weights beside it."""
    card, content, parsed = shipped
    web.files[f"/a/{NAME}.json"], web.files[f"/a/{parsed.file}"] = card, content
    return f"{web.address}/a/{NAME}.json"


@pytest.fixture
def file(shipped):
    """The path of the weights on the server."""
    return f"/a/{shipped[2].file}"


def whole(cache):
    """Weight files under their final name."""
    return list((cache / "weights").glob("*"))


# --- a server that does well ---


def test_address_loads_the_same_student_and_asks_once(web, address, file):
    model = load_student(address)
    expected = load_student(NAME, zoo_dir=SHIPPED)
    assert model.card == expected.card
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    asked = len(web.asked)
    assert limbeck.Predictor(address).card == model.card
    assert find(address) == model.card
    assert len(web.asked) == asked  # all of it from the cache
    assert web.gets(file) == [None]


def test_weights_are_named_by_their_hash_and_shared(cache, web, address, shipped):
    path = weights_path(address)
    assert path == cache / "weights" / f"{shipped[2].sha256}.safetensors"
    web.files[f"/b/{NAME}.json"] = shipped[0]
    assert weights_path(f"{web.address}/b/{NAME}.json") == path  # though /b/ has no weights


def test_card_in_cards_has_its_weights_in_weights(web, shipped):
    web.files[f"/zoo/cards/{NAME}.json"], web.files[f"/zoo/weights/{shipped[2].file}"] = shipped[0], shipped[1]
    assert sha256_file(weights_path(f"{web.address}/zoo/cards/{NAME}.json")) == shipped[2].sha256


def test_refresh_asks_again(web, address, shipped):
    assert find(address).limits == shipped[2].limits
    web.files[f"/a/{NAME}.json"] = json.dumps(json.loads(shipped[0]) | {"limits": "new"}).encode()
    assert find(address).limits == shipped[2].limits
    assert locate(address, refresh=True).card.limits == find(address).limits == "new"


def test_revision_of_an_address_pins_the_weights(web, address, shipped):
    sha256 = shipped[2].sha256
    assert find(address, revision=sha256[:8]).name == NAME
    assert find(NAME, revision=f"sha256:{sha256}", zoo_dir=SHIPPED).name == NAME
    with pytest.raises(ConfigError, match=f"sha256 {sha256[:12]}…, not of revision"):
        load_student(address, revision=("0" if sha256[0] != "0" else "1") * 8)
    with pytest.raises(ConfigError, match="branches and commits are of hf://"):
        find(address, revision="main")


# --- a server that does not ---


def test_cut_connection_is_resumed_and_finishes(cache, web, address, file, shipped):
    web.faults[file] = ["cut"]
    assert sha256_file(weights_path(address)) == shipped[2].sha256
    first, second = web.gets(file)
    assert first is None
    begin = int(second.removeprefix("bytes=").rstrip("-"))
    assert 0 < begin <= len(shipped[1]) // 2
    assert not list(cache.glob("parts/*.part"))


def test_part_of_an_earlier_process_is_gone_on_with(cache, web, address, file, shipped):
    part = cache / "parts" / f"{shipped[2].sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(shipped[1][:5000])
    weights_path(address)
    assert web.gets(file) == ["bytes=5000-"]


def test_part_that_is_not_of_the_file_is_fetched_anew(cache, web, address, file, shipped):
    part = cache / "parts" / f"{shipped[2].sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5000))
    assert sha256_file(weights_path(address)) == shipped[2].sha256
    assert web.gets(file) == ["bytes=5000-", None]


def test_server_without_ranges_is_asked_for_the_whole(cache, web, address, file, shipped):
    part = cache / "parts" / f"{shipped[2].sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(shipped[1][:5000])
    web.faults[file] = ["no-range"]
    assert sha256_file(weights_path(address)) == shipped[2].sha256


@pytest.mark.parametrize("faults", [["length"], ["short"], ["500"], ["500", "500", "cut"]], ids="-".join)
def test_server_that_lies_or_fails_for_a_while_is_outlasted(web, address, file, shipped, faults):
    web.faults[file] = faults
    assert sha256_file(weights_path(address)) == shipped[2].sha256


def test_length_that_stays_too_short_keeps_the_part(cache, web, address, file, shipped):
    web.faults[file] = ["short!"]
    with pytest.raises(NotFetched, match=f"{shipped[2].file}: .*goes on with it"):
        weights_path(address)
    assert whole(cache) == []
    size = (cache / "parts" / f"{shipped[2].sha256}.part").stat().st_size
    assert 0 < size < len(shipped[1])
    web.faults.clear()
    weights_path(address)
    assert web.gets(file)[-1] == f"bytes={size}-"


def test_corrupt_bytes_are_removed_and_both_hashes_named(cache, web, address, file, shipped):
    web.faults[file] = ["corrupt!"]
    with pytest.raises(CorruptFile) as caught:
        load_student(address)
    content = shipped[1][:-1] + bytes([shipped[1][-1] ^ 1])
    import hashlib

    assert shipped[2].sha256[:12] in str(caught.value)
    assert hashlib.sha256(content).hexdigest()[:12] in str(caught.value)
    assert NAME in str(caught.value)
    assert whole(cache) == []
    assert not list(cache.glob("parts/*.part"))
    web.faults.clear()
    assert weights_path(address).is_file()


def test_body_without_an_end_is_bounded(cache, web, address, file):
    web.faults[file] = ["endless!"]
    with pytest.raises(CorruptFile, match="more than the"):
        weights_path(address)
    assert whole(cache) == []
    web.faults[f"/a/{NAME}.json"] = ["endless!"]
    with pytest.raises(CorruptFile, match=f"more than the {CARD_BYTES:,} bytes"):
        locate(address, refresh=True)


def test_absent_card_and_absent_weights_are_named(web, address, file):
    with pytest.raises(NotFetched, match=r"/a/gone\.toy_kd\.json: there is no such file \(HTTP 404\)"):
        find(f"{web.address}/a/gone.toy_kd.json")
    del web.files[file]
    with pytest.raises(NotFetched, match=r"safetensors: there is no such file \(HTTP 404\)"):
        weights_path(address)


def test_server_error_that_stays_is_one_sentence(web, address):
    web.faults[f"/a/{NAME}.json"] = ["500!"]
    with pytest.raises(NotFetched, match="answers with HTTP 500; try again later"):
        find(address)


def test_no_network_is_one_sentence(cache, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(
        NotFetched, match=r"127\.0\.0\.1:9/a\.b\.json: the server cannot be reached .*check the network, or set LIMBECK"
    ):
        find(f"{DEAD}/a.b.json")


def test_full_disk_is_one_sentence_and_keeps_the_part(cache, web, address, monkeypatch):
    from limbeck.zoo.fetching import _Part

    find(address)
    write = _Part.write

    def full(self, data):
        if self.tell() >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(_Part, "write", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device; free space"):
        weights_path(address)
    assert whole(cache) == []
    (part,) = cache.glob("parts/*.part")
    assert part.stat().st_size == 4096
    monkeypatch.setattr(_Part, "write", write)
    weights_path(address)
    assert web.gets(".safetensors")[-1] == "bytes=4096-"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_cache_that_cannot_be_written_is_named(cache, web, address):
    cache.parent.mkdir()
    cache.parent.chmod(0o500)
    with pytest.raises(OutputError, match="LIMBECK_CACHE"):
        weights_path(address)


def test_two_processes_fetch_one_file_once(cache, web, address, file, shipped):
    web.faults[file] = ["slow!"]
    code = f"from limbeck.zoo.download import download; print(download([{address!r}])[0].path)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = paths
    assert sha256_file(path) == shipped[2].sha256
    assert len(web.gets(file)) == 1


# --- offline ---


@pytest.mark.parametrize("setting", ["LIMBECK_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_alone(web, address, monkeypatch, setting):
    expected = weights_path(address)
    asked = len(web.asked)
    monkeypatch.setenv(setting, "1")
    assert weights_path(address) == expected
    for absent in (f"{web.address}/a/other.toy_kd.json", "hf://owner/other"):
        with pytest.raises(NotFetched, match=f"not in the cache .*{setting} is set"):
            find(absent)
    assert len(web.asked) == asked


def test_offline_weights_that_are_not_there_are_said(web, address, monkeypatch):
    find(address)  # the card alone
    monkeypatch.setenv("LIMBECK_OFFLINE", "1")
    with pytest.raises(NotFetched, match=r"safetensors is not in the cache"):
        load_student(address)


# --- a repository of the hub ---


@pytest.fixture
def hub(web, shipped, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", web.address)
    web.add_repository("owner/one", {"README.md": b"#", f"{NAME}.json": shipped[0], shipped[2].file: shipped[1]})
    return web


def test_hub_repository_gives_its_only_student(hub, shipped, cache):
    found = locate("hf://owner/one")
    assert (found.card, found.source) == (shipped[2], f"hf://owner/one@{COMMIT}/{NAME}.json")
    assert sha256_file(weights(found)) == shipped[2].sha256
    assert not list(cache.glob("parts/*.hub"))
    asked = len(hub.asked)
    assert load_student("hf://owner/one").card.name == NAME
    assert len(hub.asked) == asked


def test_hub_revision_in_the_reference_or_beside_it(hub):
    for found in (locate("hf://owner/one@v1"), locate("hf://owner/one", revision="v1")):
        assert found.source == f"hf://owner/one@{COMMIT}/{NAME}.json"
    with pytest.raises(ConfigError, match="names a revision, and revision='main' another"):
        locate("hf://owner/one@v1", revision="main")
    with pytest.raises(NotFetched, match="hf://owner/one@v9: there is no such repository, revision or file"):
        locate("hf://owner/one@v9")


def test_hub_repository_of_several_wants_a_name(hub, shipped):
    other = json.dumps(json.loads(shipped[0]) | {"name": "other.toy_kd"}).encode()
    hub.add_repository(
        "owner/two",
        {
            f"cards/{NAME}.json": shipped[0],
            "cards/other.toy_kd.json": other,
            f"weights/{shipped[2].file}": shipped[1],
            "config.json": b"{}",
        },
    )
    with pytest.raises(ConfigError, match=f"several students, other.toy_kd, {NAME}; name one: hf://owner/two/other"):
        find("hf://owner/two")
    assert sha256_file(weights_path(f"hf://owner/two/{NAME}")) == shipped[2].sha256
    with pytest.raises(UnknownName, match=f"in hf://owner/two; did you mean '{NAME}'"):
        find("hf://owner/two/resnet8w4.digits_kdd")


def test_hub_errors_are_one_sentence(hub, shipped, cache, monkeypatch):
    with pytest.raises(
        NotFetched, match="hf://owner/none: there is no such repository, revision or file, or it is not public"
    ):
        find("hf://owner/none")
    for wrong in ("hf://owner", "hf://", "hf:///x"):
        with pytest.raises(ConfigError, match="hf://owner/name"):
            find(wrong)
    path = f"/owner/one/resolve/{COMMIT}/{shipped[2].file}"
    hub.faults[path] = ["corrupt!"]
    with pytest.raises(CorruptFile, match=shipped[2].sha256[:12]):
        weights_path("hf://owner/one")
    assert whole(cache) == []
    hub.faults[path] = ["cut", "500"]
    assert weights_path("hf://owner/one").is_file()


def test_hub_that_is_not_reached(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(NotFetched, match=r"hf://owner/one: the hub cannot be reached .*HF_ENDPOINT, or set LIMBECK"):
        find("hf://owner/one")


def test_hub_addresses_survive_being_written():
    for text in ("hf://a/b", "hf://a/b@main", "hf://a/b@refs%2Fpr%2F1/x.y", "hf://a/b/weights/f.safetensors"):
        assert str(parse_hub(text)) == text
    assert parse_hub("hf://a/b@refs%2Fpr%2F1").revision == "refs/pr/1"


# --- folders and mirrors ---


def put(folder, shipped):
    """A zoo folder with one student."""
    for part in ("cards", "weights"):
        (folder / part).mkdir(parents=True)
    (folder / "cards" / f"{NAME}.json").write_bytes(shipped[0])
    (folder / "weights" / shipped[2].file).write_bytes(shipped[1])
    return folder


def test_local_folder_card_and_name(tmp_path, cache, shipped):
    zoo = put(tmp_path / "zoo", shipped)
    for reference in (f"{zoo}", f"{zoo}/{NAME}", f"{zoo}/cards/{NAME}.json", f"file://{zoo}"):
        assert weights_path(reference) == zoo / "weights" / shipped[2].file
    with pytest.raises(UnknownName, match=f"did you mean '{NAME}'"):
        find(f"{zoo}/resnet8w4.digits_kdd")
    with pytest.raises(ConfigError, match="no card and no folder"):
        find(f"{tmp_path}/nothing/here")
    assert not cache.exists()


@pytest.mark.parametrize("kind", ["http", "path", "file"])
def test_mirror_has_what_the_zoo_lacks(tmp_path, web, cache, shipped, monkeypatch, kind):
    folder = put(tmp_path / "mirror", shipped)
    for path in folder.rglob("*.*"):
        web.files[f"/m/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    base = {"http": f"{web.address}/m/", "path": str(folder), "file": f"file://{folder}"}[kind]
    bare = tmp_path / "bare"  # a zoo of cards alone, and of another name
    (bare / "cards").mkdir(parents=True)
    card = json.loads(shipped[0]) | {"name": "bare.toy_kd"}
    (bare / "cards" / "bare.toy_kd.json").write_text(json.dumps(card))
    monkeypatch.setattr("limbeck.zoo.index.SHIPPED", bare)
    with pytest.raises(UnknownName):
        find(NAME)
    with pytest.raises(CorruptFile, match=r"absent.*LIMBECK_MIRROR"):
        weights_path("bare.toy_kd")
    monkeypatch.setenv("LIMBECK_MIRROR", base)
    for name in (NAME, "bare.toy_kd"):
        assert weights_path(name) == cache / "weights" / f"{shipped[2].sha256}.safetensors"
    with pytest.raises(UnknownName, match=r"in the zoo and in the mirror .*did you mean 'bare.toy_kd'"):
        find("bare.toy_kdd")


def test_mirror_is_not_asked_for_what_is_here(web, monkeypatch):
    monkeypatch.setenv("LIMBECK_MIRROR", web.address)
    assert weights_path(NAME).parent == SHIPPED / "weights"
    assert web.asked == []


def test_addresses_of_no_kind_are_refused(cache):
    for wrong in ("https:///x.json", "gopher://host/x.json"):
        with pytest.raises(ConfigError, match="address"):
            find(wrong)
    with pytest.raises(ConfigError, match=r"ends in \.json"):
        find("https://example.org/x.safetensors")


def test_messages_show_no_password():
    assert shown("https://user:secret@host:8/a.json?token=x") == "https://host:8/a.json"


# --- cards from elsewhere ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(model=dict(type="os.system", command="x")), "model.type: the type 'os.system'"),
        (
            dict(model=dict(type="mmdet", config=dict(backbone=dict(type="mmengine.load")))),
            "model.config.backbone.type",
        ),
        (dict(model=dict(type="timm", model="hf-hub:owner/evil")), "model.model: the address"),
        (dict(model=dict(type="timm", model="x", pretrained=True)), "model.pretrained: weights beside"),
        (dict(model=dict(type="mmseg", config=[dict(init_cfg=dict(checkpoint="x.pth"))])), "the key 'checkpoint'"),
        (dict(surprise=1), "surprise: Extra inputs"),
        (dict(file="../x.safetensors"), "file: "),
        (dict(file="x.pth"), "file: "),
        (dict(file_bytes=5_000_000_000), "file_bytes: "),
        (dict(metrics=dict(top1=float("nan"))), "metrics.top1"),
    ],
)
def test_card_that_asks_for_more_is_refused(web, address, shipped, change, said):
    web.files[f"/a/{NAME}.json"] = json.dumps(json.loads(shipped[0]) | change).encode()
    with pytest.raises(CorruptFile, match=said):
        find(address)
    assert web.gets(".safetensors") == []


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"\xff", b'{"a":' * 5000], ids=range(5))
def test_what_is_no_card_is_refused(web, address, content):
    web.files[f"/a/{NAME}.json"] = content
    with pytest.raises(CorruptFile, match=f"{NAME}.json: "):
        find(address)


# --- many at once ---


def test_download_many_in_parallel_into_a_folder(web, address, file, shipped, tmp_path, monkeypatch):
    web.faults[file] = ["cut"]
    seen = {}
    done = download(
        [address, NAME, address], tmp_path / "mine", progress=lambda name, there, whole: seen.update({name: there})
    )
    assert [one.reference for one in done] == [address, NAME]
    assert {one.path for one in done} == {str(tmp_path / "mine" / "weights" / shipped[2].file)}
    assert seen == {address: len(shipped[1]), NAME: len(shipped[1])}
    assert load_student(NAME, zoo_dir=tmp_path / "mine").card == shipped[2]


def test_download_that_fails_for_some_keeps_the_others(cache, web, address):
    lost = [f"{web.address}/a/{name}.toy_kd.json" for name in ("x", "y")]
    with pytest.raises(NotFetched, match=r"2 of 3 students could not be had: \(1\) .*x\.toy_kd.*; \(2\) .*y\.toy_kd"):
        download([lost[0], address, lost[1]])
    assert len(whole(cache)) == 1
