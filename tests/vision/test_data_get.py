"""Downloads from a local server: what is checked, what is kept, and what is said where nothing can be downloaded."""

import dataclasses
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from limbeck.engine import data_sources
from limbeck.engine.registry import DATASETS
from limbeck.errors import CorruptFile, DataMissing, OutputError
from limbeck.vision.data import fashion_mnist, get
from limbeck.vision.data._cifar_files import PUBLISHED


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data but the test's own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    """A server of the bytes in its `files`; a path in its `cut` breaks off after half of the promised length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found.requests.append(self.path)
            body = found.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path in found.cut else body)

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files, found.cut, found.requests = {}, set(), []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def archive(name: str, count: int, leave_out: str | None = None) -> bytes:
    """A tar.gz as the authors', with a text file and a link beside the data."""
    data = PUBLISHED[name]
    rng = np.random.default_rng(3)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        link = tarfile.TarInfo(f"{data.inner}/../../outside")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        for member in (*data.train, *data.test, "readme.html"):
            if member == leave_out:
                continue
            rows = rng.integers(0, 256, (count, data.label_bytes + 3072), dtype=np.uint8)
            rows[:, : data.label_bytes] %= 10
            info = tarfile.TarInfo(f"{data.inner}/{member}")
            info.size = rows.nbytes
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    return file.getvalue()


def publish(server, monkeypatch, name: str, body: bytes, count: int = 4) -> None:
    """Let the local server be the authors' page, with this archive and its hashes."""
    data = PUBLISHED[name]
    path = "/" + data.url.rsplit("/", 1)[1]
    server.files[path] = body
    changed = dataclasses.replace(
        data,
        url=f"http://127.0.0.1:{server.server_port}{path}",
        md5=hashlib.md5(body).hexdigest(),
        sha256=hashlib.sha256(body).hexdigest(),
        train=dict.fromkeys(data.train, count),
        test=dict.fromkeys(data.test, count),
    )
    monkeypatch.setitem(PUBLISHED, name, changed)


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_get_cifar_checks_and_stores_the_data_files_alone(server, monkeypatch, name, kind):
    publish(server, monkeypatch, name, archive(name, 4))
    folder = data_sources.get(name, progress=False)
    data = PUBLISHED[name]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*data.train, *data.test, "MANIFEST.sha256", "source.json"]
    )
    source = json.loads((folder / "source.json").read_text())
    assert (source["url"], source["md5"], source["sha256"]) == (data.url, data.md5, data.sha256)
    assert not folder.parent.joinpath("outside").exists()
    assert len(DATASETS.make({"type": kind, "split": "test"})) == 4
    assert len(DATASETS.make({"type": kind, "split": "val", "val_size": 2})) == 2
    assert data_sources.located()[name] == str(folder)
    asked = len(server.requests)
    assert data_sources.get(name, progress=False) == folder
    assert len(server.requests) == asked


def test_get_cifar_says_what_was_checked(server, monkeypatch, capsys):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    data_sources.get("cifar10")
    said = capsys.readouterr().err
    assert PUBLISHED["cifar10"].md5 in said
    assert PUBLISHED["cifar10"].sha256 in said


def test_get_cifar_without_progress_is_silent(server, monkeypatch, capfd):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    data_sources.get("cifar10", progress=False)
    assert capfd.readouterr() == ("", "")


def test_get_cifar_damaged_afterwards_is_noticed(server, monkeypatch):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    path = data_sources.get("cifar10", progress=False) / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFile, match=r"test_batch\.bin: not the file that MANIFEST.sha256 lists"):
        DATASETS.make({"type": "CIFAR10", "split": "test"})


def test_get_cifar_half_there_is_got_again(server, monkeypatch):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    folder = data_sources.get("cifar10", progress=False)
    (folder / "data_batch_2.bin").unlink()
    assert (data_sources.get("cifar10", progress=False) / "data_batch_2.bin").is_file()


def nothing_kept(tmp_path) -> bool:
    return not [p for p in (tmp_path / "cache" / "data").rglob("*") if p.is_file()]


def test_get_cifar_refuses_other_content(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    path, body = next(iter(server.files.items()))
    other = bytes([*body[:-20], body[-20] ^ 1, *body[-19:]])
    server.files[path] = other
    data = PUBLISHED["cifar10"]
    found = hashlib.md5(other).hexdigest()[:12], hashlib.sha256(other).hexdigest()[:12]
    said = rf"md5 is {found[0]}…, expected {data.md5[:12]}…, sha256 is {found[1]}…, expected {data.sha256[:12]}…"
    with pytest.raises(CorruptFile, match=said):
        data_sources.get("cifar10", progress=False)
    assert nothing_kept(tmp_path)
    with pytest.raises(DataMissing, match="limbeck data get cifar10"):
        DATASETS.make({"type": "CIFAR10", "split": "test"})


def test_get_cifar_refuses_what_broke_off(server, monkeypatch, tmp_path):
    body = archive("cifar100", 4)
    publish(server, monkeypatch, "cifar100", body)
    server.cut.update(server.files)
    with pytest.raises(CorruptFile, match=f"{len(body) // 2} bytes, md5 is"):
        data_sources.get("cifar100", progress=False)
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize("gone", ["file", "server"])
def test_get_cifar_without_its_page_says_what_else_to_do(server, monkeypatch, tmp_path, gone):
    publish(server, monkeypatch, "cifar10", archive("cifar10", 4))
    if gone == "file":
        server.files.clear()
    else:
        url = "http://127.0.0.1:9/cifar-10-binary.tar.gz"  # the discard port: nobody listens
        monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(PUBLISHED["cifar10"], url=url))
    with pytest.raises(DataMissing, match=r"could not be downloaded from http.*\$LIMBECK_DATA/cifar10_original"):
        data_sources.get("cifar10", progress=False)
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize("kind", ["no archive", "file missing", "not gzip at its end"])
def test_get_cifar_refuses_an_archive_of_other_files(server, monkeypatch, kind):
    bodies = {
        "no archive": b"<html>moved</html>",
        "file missing": archive("cifar10", 4, leave_out="data_batch_5.bin"),
        "not gzip at its end": archive("cifar10", 4)[:-5000],
    }
    publish(server, monkeypatch, "cifar10", bodies[kind])
    with pytest.raises(CorruptFile, match="no archive of cifar-10-batches-bin"):
        data_sources.get("cifar10", progress=False)
    with pytest.raises(DataMissing):
        DATASETS.make({"type": "CIFAR10", "split": "train"})


def test_get_into_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="LIMBECK_CACHE"):
        data_sources.get("cifar10", progress=False)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10-jpeg", "cifar10"),
        ("flowers5", "flowers5"),
        ("dtd10", "dtd10"),
        ("imagenet", "imagenet"),
        ("tiny-imagenet", "tiny-imagenet-200"),
    ],
)
def test_get_of_data_without_a_public_home_says_where_to_put_it(tmp_path, name, folder):
    with pytest.raises(DataMissing, match=rf"\$LIMBECK_DATA/{folder}.*cannot be downloaded") as caught:
        data_sources.get(name)
    assert "\n" not in str(caught.value)
    place = tmp_path / "cache" / "data" / folder
    (place / "train").mkdir(parents=True)
    (place / "train.npz").touch()
    assert data_sources.get(name) == place


def test_every_data_set_has_terms_for_the_cards_of_its_students():
    from limbeck.zoo.publish import DATA_TERMS

    assert {*get.sources(), "camvid", "digit-scenes"} <= set(DATA_TERMS)
    assert all(terms.licence and terms.limits for terms in DATA_TERMS.values())
