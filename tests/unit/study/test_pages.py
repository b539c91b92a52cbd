"""The web pages of a human study, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from optune_core.errors import StoreError
from optune_core.storage import ArtifactStore
from optune_core.storage.studies import StudyLedger
from optune_core.study.create import create_study, open_study
from optune_core.study.sessions import Sessions
from optune_core.study.web import study_app
from tests.unit.study.sources import file_of


@pytest.fixture
def client(store: ArtifactStore, tmp_path: Path) -> TestClient:
    hostile = ["</div><script>alert(1)</script>", "{{ 7 * 7 }}"]
    files = [file_of(tmp_path, "run-alpha", hostile), file_of(tmp_path, "run-beta", ["a", "b"])]
    create_study(store, "secret-title", [], files, 50, None)
    ledger, _, pairs = open_study(store, "secret-title")
    sessions = Sessions(ledger, pairs, 50)
    return TestClient(study_app("secret-title", sessions, pairs, ["localhost"]), base_url="http://localhost")


def token_of(page: str) -> str:
    return page.partition('name="token" value="')[2].partition('"')[0]


def test_pages_escape_texts_and_do_not_show_their_sources(client: TestClient) -> None:
    seen = [client.get("/").text, client.post("/join", data={"name": "<i>Eve</i>"}).text]
    for _ in range(2):
        page = client.get("/pair")
        seen.append(page.text)
        client.post(page.url.path, data={"choice": "equal", "token": token_of(page.text)})
    seen.append(client.get("/pair").text)
    everything = "".join(seen) + str(client.cookies)
    assert "Thank you, &lt;i&gt;Eve&lt;/i&gt;!" in seen[-1]
    assert "&lt;script&gt;alert(1)" in everything and "{{ 7 * 7 }}" in everything
    for hidden in ("<script>alert", "<i>Eve", "run-alpha", "run-beta", "secret-title", "policy", "baseline"):
        assert hidden not in everything


def test_only_a_form_from_the_participants_own_page_is_accepted(client: TestClient, store: ArtifactStore) -> None:
    client.post("/join", data={"name": "eve"})
    token = token_of(client.get("/pair/1").text)
    good = {"choice": "first", "token": token, "shown_at": "0"}
    elsewhere = {"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}
    assert [client.post("/pair/1", data=good, headers=each).status_code for each in elsewhere] == [403, 403]
    assert client.post("/join", data={"name": "x"}, headers=elsewhere[0]).status_code == 403
    assert client.post("/pair/1", data=good | {"token": "0"}).status_code == 403
    assert client.post("/pair/1", data=good | {"choice": "neither"}).status_code == 400
    assert client.post("/pair/2", data=good).status_code == 400, "not yet shown"
    assert client.get("/pair/1", headers={"host": "evil.example"}).status_code == 400
    ledger, _, _ = open_study(store, "secret-title")
    (eve,) = ledger.participants.read()
    assert ledger.ratings(eve["id"]).read() == []
    assert client.post("/pair/1", data=good, headers={"origin": "http://localhost"}).url.path == "/pair/2"
    (saved,) = ledger.ratings(eve["id"]).read()
    assert (saved["choice"], saved["seconds"]) == ("first", None), "half a century is no time that was taken"


def test_an_unknown_participant_is_sent_to_the_first_page(client: TestClient) -> None:
    client.cookies.set("participant", "0" * 32)
    for path in ("/pair", "/pair/1", "/guidelines", "/done"):
        assert client.get(path).url.path == "/"
    assert "1 to 64" in client.post("/join", data={"name": " "}).text


def test_a_choice_that_was_not_stored_is_not_reported_as_saved(
    client: TestClient, store: ArtifactStore, tmp_path: Path
) -> None:
    client.post("/join", data={"name": "eve"})
    page = client.get("/pair/1").text
    (tmp_path / "store" / "studies" / "secret-title" / "ratings").write_text("a file where a folder belongs")
    refused = client.post("/pair/1", data={"choice": "first", "token": token_of(page)})
    assert refused.status_code == 503
    assert "may not be saved" in refused.text
    ledger = StudyLedger(store.objects, "secret-title")
    with pytest.raises(StoreError):
        ledger.ratings(ledger.participants.read()[0]["id"]).append(lambda _: {})
