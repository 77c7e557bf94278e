"""A model's name is asked of the hub once, and what the hub says is told in one line."""

import pytest

from vidsieve.errors import VidsieveError

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("httpx.ConnectError('Name or service not known')", "cannot be reached (Name or service not known)"),
        ("httpx.ConnectTimeout('')", "cannot be reached (ConnectTimeout)"),
        ("hub.errors.RepositoryNotFoundError('404 many\\nlines', response=answer)", "knows no such model"),
        ("hub.errors.GatedRepoError('403', response=answer)", "to those alone who asked for it"),
        ("hub.errors.RemoteEntryNotFoundError('404', response=answer)", "has no config.json"),
        ("hub.errors.HfHubHTTPError('503 busy\\nlater', response=answer)", "refused (503 busy)"),
    ],
)
def test_a_name_on_the_hub_is_asked_for_once(raised: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub as hub

    from vidsieve.engines.hf import hub as ours

    asked = []

    def answer(url: str, timeout: float) -> None:
        asked.append(timeout)
        response = httpx.Response(404, request=httpx.Request("HEAD", url))
        raise eval(raised, {"hub": hub, "httpx": httpx, "answer": response})

    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", answer)
    with pytest.raises(VidsieveError) as error:
        ours.find("no/such")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert asked == [ours.SECONDS]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: "/cache/config.json")
    assert ours.find("no/such") == {"local_files_only": True}
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert ours.find("no/such") == {}
