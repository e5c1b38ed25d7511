"""Who gets an answer: the token, this machine's names, the same origin; and no file from elsewhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hssl.errors import ConfigError
from hssl.store import Store
from hssl.store.store import INDEX, array_path

if TYPE_CHECKING:
    from starlette.testclient import TestClient

OpenPage = Callable[..., "TestClient"]
MakeStore = Callable[..., Store]


def address(client: TestClient, kind: str) -> str:
    """The first place of this kind on the home page."""
    found = re.search(rf'href="/[^/]*/({kind}/[0-9a-f]+)"', client.get("").text)
    assert found, f"the page lists no {kind}"
    return found[1]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a foreign name that leads here
        {"host": "127.0.0.1.evil.example:8000"},
        {"host": "[::1"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},  # another server of this machine
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    ],
)
def test_another_host_or_origin_gets_403(open_page: OpenPage, make_store: MakeStore, headers: dict[str, str]) -> None:
    client = open_page(make_store().path)
    assert client.get("").status_code == 200
    refused = client.get("", headers=headers)
    assert refused.status_code == 403
    assert "store" not in refused.text
    assert client.post("predict", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path", ["/", "/x/", "/token-of-the-test/", "/token-of-the-testsx/", "//", "/static/style.css"]
)
def test_without_the_token_there_is_nothing(open_page: OpenPage, make_store: MakeStore, path: str) -> None:
    client = open_page(make_store().path)
    assert client.get(f"http://127.0.0.1:8000{path}").status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:1234"},  # through a tunnel
        {"host": "[::1]:8000"},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link in a notebook or a mail
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
    ],
)
def test_its_own_pages_get_answers(open_page: OpenPage, make_store: MakeStore, headers: dict[str, str]) -> None:
    assert open_page(make_store().path).get("", headers=headers).status_code == 200


def test_every_answer_forbids_what_is_not_its_own(open_page: OpenPage, make_store: MakeStore) -> None:
    client = open_page(make_store().path)
    for answer in (
        client.get(""),
        client.get("static/style.css"),
        client.get("nowhere"),
        client.get("http://127.0.0.1:8000/"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "http" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_page_names_an_address_elsewhere() -> None:
    """Nothing is fetched from a network: no file of the page has an absolute address in it."""
    import hssl.viewer

    for path in Path(hssl.viewer.__file__).parent.rglob("*"):
        if path.suffix in (".jinja", ".css", ".js") and path.name != "niivue.js":
            text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")  # the name of a language
            assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), path.name


@pytest.mark.parametrize(
    "path",
    [
        "static/../places.py",
        "static/%2e%2e/places.py",
        "static/..%2fplaces.py",
        "store/../../index.json",
        "{store}/case/Blobs/..%2f..%2findex.json/image.nii",
        "{store}/case/..%2fimages/blobs0/image.nii",
        "{store}/case/Blobs/%2fetc%2fpasswd/mask.nii",
        "{store}/task/..%2fBlobs",
    ],
)
def test_no_path_leads_out(open_page: OpenPage, make_store: MakeStore, path: str) -> None:
    client = open_page(make_store().path)
    answer = client.get(path.format(store=address(client, "store")))
    assert answer.status_code in (403, 404)  # 403 where the client has left the token out
    assert b"NUMPY" not in answer.content


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_an_array_that_is_a_link_out_is_refused(
    open_page: OpenPage, make_store: MakeStore, tmp_path: Path, kind: str
) -> None:
    store = make_store()
    file = array_path(store.path, kind, "Blobs", "blobs0")
    secret = tmp_path / "secret.npy"
    file.rename(secret)
    file.symlink_to(secret)
    client = open_page(store.path)
    place = address(client, "store")
    name = {"images": "image", "labels": "mask"}[kind]
    refused = client.get(f"{place}/case/Blobs/blobs0/{name}.nii")
    assert refused.status_code == 403
    assert "give the folder that it is in" in refused.text
    assert client.get(f"{place}/case/Blobs/blobs0/slice.png?mask").status_code == 403
    assert client.get(f"{place}/sheet.png").status_code == 403
    assert client.get(f"{place}/case/Blobs/blobs1/{name}.nii").status_code == 200
    both = open_page(store.path, tmp_path)
    assert both.get(f"{place}/case/Blobs/blobs0/{name}.nii").status_code == 200


def test_an_index_that_is_a_link_out_is_refused(open_page: OpenPage, make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    (store.path / INDEX).rename(tmp_path / "index.json")
    (store.path / INDEX).symlink_to(tmp_path / "index.json")
    client = open_page(store.path)
    assert client.get(address(client, "store")).status_code == 403


def test_a_folder_that_is_a_link_out_is_not_listed(open_page: OpenPage, make_store: MakeStore, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    make_store(name="shown/own")
    (shown / "other").symlink_to(make_store(name="hidden").path)
    page = open_page(shown).get("").text
    assert "shown/own" in page
    assert "other" not in page


def test_a_name_is_text_and_no_markup(open_page: OpenPage, make_store: MakeStore) -> None:
    store = make_store()
    index = json.loads((store.path / INDEX).read_text())
    index["tasks"]["Blobs"]["labels"]["1"] = "<script>alert(1)</script>"
    (store.path / INDEX).write_text(json.dumps(index))
    client = open_page(store.path)
    place = address(client, "store")
    for page in (f"{place}/task/Blobs", f"{place}/case/Blobs/blobs0"):
        text = client.get(page).text
        assert "<script>alert" not in text
        assert "alert(1)" in text


def test_what_is_no_folder_or_holds_nothing_is_one_line(open_page: OpenPage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        open_page(tmp_path / "missing")
    with pytest.raises(ConfigError, match="holds no store, no run and no benchmark"):
        open_page(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="asks for a port that is taken")
def test_a_port_that_is_taken_is_one_line(make_store: MakeStore) -> None:
    import socket

    pytest.importorskip("starlette", reason="needs the extra 'view'")
    from hssl.viewer import view

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            view(make_store().path, port=port, ready=lambda _: pytest.fail("it is not ready"))


def test_voxels_are_finite_floats(open_page: OpenPage, make_store: MakeStore) -> None:
    """The header of what is served says no more than the grid: no path, no name."""
    store = make_store()
    client = open_page(store.path)
    served = client.get(f"{address(client, 'store')}/case/Blobs/blobs0/image.nii").content
    image = store.image(store.cases("Blobs")[0])
    assert len(served) == 352 + 4 * image.size
    assert str(store.path).encode() not in served
    assert np.isfinite(np.frombuffer(served[352:], "<f4")).all()
