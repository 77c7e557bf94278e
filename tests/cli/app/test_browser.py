"""The page in a real Chromium. `make test-app` runs it; SCREENSHOTS names a folder for pictures of the page."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.clips import write
from vidsieve import registry
from vidsieve.cli import demo
from vidsieve.cli.app.serve import address, hosts, listen
from vidsieve.cli.app.service import Service, Settings
from vidsieve.evaluation.needles.tiny import BUNDLED

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]  # of other libraries, in the server's threads

pytest.importorskip("gradio", reason="needs the extra `app`")
uvicorn = pytest.importorskip("uvicorn")
api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which `make test-app` installs")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("drives Chromium, which is not installed; CHROMIUM names it elsewhere", allow_module_level=True)

LIMIT = 3 * 2**19  # bytes of an upload
PATIENCE = 60_000  # milliseconds
QUESTION, RIGHT = demo.question()


class Site:
    """The page, served in a thread of this process, whose look-ups of other hosts are noted."""

    def __init__(self, folder: Path) -> None:
        from vidsieve.cli.app.page import application

        self.folder = folder
        self.service = Service(Settings(device="cpu", max_new_tokens=8))
        listening = listen("127.0.0.1", 0)
        self.url = address(listening)
        made = application(self.service, folder, LIMIT, hosts(listening, "127.0.0.1", []))
        config = uvicorn.Config(made, log_config=None, log_level="critical", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = Thread(target=self.server.run, args=([listening],))
        self.thread.start()

    def files(self) -> set[str]:
        every = (Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names)
        return {path.name for path in every if path != self.folder / "sample.mp4"}

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def asked_hosts() -> Iterator[list[str]]:
    """What this process looks up, which is what it would connect to."""
    hosts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = socket.getaddrinfo

        def noted(host: Any, *more: Any, **named: Any) -> Any:
            hosts.append(str(host))
            return real(host, *more, **named)

        patch.setattr(socket, "getaddrinfo", noted)
        yield hosts


@pytest.fixture(scope="module")
def site(asked_hosts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    quiet = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


class Visitor:
    """A page that is open."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1000, "height": 1080}, device_scale_factor=2)
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#clip input[type=file]", state="attached")

    def take_sample(self) -> None:
        self.page.click("#sample")
        self.page.wait_for_function("q => document.querySelector('#question textarea').value == q", arg=QUESTION)
        self.page.wait_for_selector("#clip video")

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#clip input[type=file]", path)
        self.page.wait_for_selector("#clip video", state="attached")
        self.page.fill("#question textarea", "What happens?")

    def ask(self) -> str:
        """Ask, and return what is above the answers."""
        self.page.evaluate("document.querySelector('#said p')?.remove()")
        self.page.click("#ask")
        self.page.wait_for_selector("#said p")
        return str(self.page.inner_text("#said"))

    def answers(self) -> tuple[str, str]:
        return self.page.input_value("#unreduced textarea"), self.page.input_value("#reduced textarea")


@pytest.fixture
def visitor(browser: Any, site: Site) -> Iterator[Visitor]:
    made = Visitor(browser, site.url)
    yield made
    made.page.close()
    assert made.errors == []


def left(site: Site, names: set[str]) -> bool:
    """Whether these files of visitors are left; the server learns a second or so later that a page is closed."""
    for _ in range(100):
        if site.files() == names:
            return True
        time.sleep(0.1)
    return False


def screenshot(visitor: Visitor, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        visitor.page.evaluate("scrollTo(0, 0)")
        visitor.page.wait_for_timeout(1000)
        visitor.page.screenshot(path=Path(folder) / name, type="jpeg", quality=70)


def test_the_sample_is_answered_and_nothing_is_loaded_from_elsewhere(
    visitor: Visitor, site: Site, asked_hosts: list[str]
) -> None:
    visitor.take_sample()
    said = visitor.ask()
    assert "576 video tokens -> 58 kept (10.1 %)" in said
    assert "first token" in said
    assert visitor.answers() == (RIGHT, RIGHT)
    table = visitor.page.inner_text("#times")
    assert "vidsieve, keep 0.1" in table
    assert "prompt tokens\t591\t73" in table
    assert "most of the kept tokens: 0:" in table
    visitor.page.wait_for_function("document.querySelector('#sheet img')?.naturalWidth > 900")
    screenshot(visitor, "app.jpg")
    assert not visitor.page.is_visible("text=Trim")
    assert len(visitor.requests) > 20
    assert [url for url in visitor.requests if not url.startswith((f"{site.url}/", "blob:", "data:"))] == []
    assert set(asked_hosts) <= {"127.0.0.1"}


def test_a_browser_is_told_to_load_nothing_from_elsewhere(visitor: Visitor) -> None:
    blocked = visitor.page.evaluate(
        "() => new Promise(done => {"
        "document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));"
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.2:9/picture.png'}))})"
    )
    assert blocked == "http://127.0.0.2:9/picture.png"


def test_methods_are_those_of_the_table_and_bring_their_share(visitor: Visitor) -> None:
    visitor.page.click("#method input")
    listed = visitor.page.locator("#method [role=option]")
    listed.first.wait_for()
    assert [name.split("\n")[-1].strip() for name in listed.all_inner_texts()] == list(registry.methods())
    visitor.page.click("#method [role=option]:has-text('framefusion')")
    visitor.page.wait_for_selector("#keep :text('FLOPs')")
    assert float(visitor.page.input_value("#keep input[type=number]")) == registry.method("framefusion").default_keep
    assert registry.method("framefusion").summary in visitor.page.inner_text("#method")


def test_a_film_plays(visitor: Visitor, tmp_path: Path) -> None:
    visitor.upload(write(tmp_path / "clip.mp4", count=8))
    visitor.page.check("#film input")
    visitor.ask()
    visitor.page.wait_for_function("document.querySelector('#moving video')?.readyState >= 2")


def test_broken_uploads_are_told_and_a_good_one_is_answered_after_them(
    visitor: Visitor, site: Site, tmp_path: Path
) -> None:
    good = write(tmp_path / "good.mp4", count=8)
    broken = {"empty.mp4": b"", "text.mp4": b"hello\n" * 100, "cut.mp4": good.read_bytes()[: good.stat().st_size // 2]}
    said = ("is empty (0 bytes)", "is not a video that can be decoded", "cut off before the end of its index")
    for (name, content), says in zip(broken.items(), said, strict=True):
        (tmp_path / name).write_bytes(content)
        visitor.upload(tmp_path / name)
        told = visitor.ask()
        assert told.startswith(f"{name}: ")
        assert says in told
        assert visitor.answers() == ("", "")
        visitor.page.click("#clip button[aria-label=Clear]:visible")
        visitor.page.wait_for_selector("#clip input[type=file]", state="attached")
    visitor.upload(good)
    assert "video tokens ->" in visitor.ask()
    assert {name for name in site.files() if name.endswith(".mp4")} == {"good.mp4"}


def test_what_is_too_large_is_refused_by_page_and_server(visitor: Visitor, site: Site, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(LIMIT + 1))
    visitor.page.set_input_files("#clip input[type=file]", tmp_path / "large.mp4")
    visitor.page.wait_for_selector("text=exceed the maximum allowed size of 1.5 M")
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="large.mp4"\r\n\r\n%s\r\n--b--\r\n' % bytes(
        LIMIT + 1
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{site.url}/gradio_api/upload", body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413
    refused.value.close()
    assert not any(name.startswith("large") for name in site.files())


def test_a_page_of_another_name_gets_nothing(site: Site) -> None:
    for path in ("/", "/config", "/gradio_api/upload"):
        request = urllib.request.Request(f"{site.url}{path}", headers={"Host": "evil.example:7860"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 403
        assert b"--allow-host" in refused.value.read()
        refused.value.close()


def test_where_uploads_have_no_room_left_the_page_says_so_until_there_is(
    visitor: Visitor, site: Site, tmp_path: Path
) -> None:
    good = write(tmp_path / "good.mp4", count=8)
    full = site.folder / "full"
    full.mkdir()
    (full / "other.mp4").write_bytes(bytes(4 * LIMIT))  # somebody's who is about to see it
    visitor.page.set_input_files("#clip input[type=file]", good)
    visitor.page.wait_for_selector("text=there is no room for another clip until a visitor leaves")
    assert not any(name.startswith("good") for name in site.files())
    os.utime(full / "other.mp4", (1e9, 1e9))
    visitor.page.reload()
    visitor.page.wait_for_selector("#clip input[type=file]", state="attached")
    visitor.upload(good)
    assert "video tokens ->" in visitor.ask()
    assert not full.exists()


def test_two_visitors_ask_at_once_and_their_files_go_with_their_pages(browser: Any, site: Site, tmp_path: Path) -> None:
    visitors = [Visitor(browser, site.url) for _ in range(2)]
    assert left(site, set())
    for number, one in enumerate(visitors):
        one.upload(write(tmp_path / f"{number}.mp4", count=4 + 4 * number))
    for one in visitors:
        one.page.click("#ask")
    for one in visitors:
        one.page.wait_for_selector("#said p")
        assert "video tokens ->" in one.page.inner_text("#said")
    assert site.files() == {"0.mp4", "1.mp4", "overlay.png"}
    visitors[0].page.close()
    assert left(site, {"1.mp4", "overlay.png"})
    visitors[1].page.close()
    assert left(site, set())


def test_files_of_this_machine_are_not_served(site: Site) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), "pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{site.url}/gradio_api/file={path}")
        assert refused.value.code == 403
        refused.value.close()


def posted(site: Site, path: str) -> str:
    """What the server says of a request, made by hand, whose clip and question are the file or address `path`."""
    with urllib.request.urlopen(f"{site.url}/config") as answer:
        [asking] = [row["id"] for row in json.load(answer)["dependencies"] if len(row["inputs"]) == 6]
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, file, str(BUNDLED), "vidsieve", 0.1, False], "fn_index": asking, "session_hash": "by-hand"}
    headers = {"Content-Type": "application/json"}
    url = f"{site.url}/gradio_api/queue"
    urllib.request.urlopen(urllib.request.Request(f"{url}/join", json.dumps(body).encode(), headers)).close()
    with urllib.request.urlopen(f"{url}/data?session_hash=by-hand") as events:
        return next(line.decode() for line in events if b"process_completed" in line)


def test_a_request_cannot_name_a_file_of_this_machine_or_an_address(site: Site, asked_hosts: list[str]) -> None:
    before = site.files()
    sample = f"{site.folder}/sample.mp4"  # of all visitors, and would go with the one who showed it
    here = ("/etc/passwd", str(Path(__file__)), f"{site.folder}/../clip.mp4", sample)
    for path in (*here, "http://127.0.0.2:9/clip.mp4"):
        assert "expected a clip that was uploaded on this page" in posted(site, path)
    assert "127.0.0.2" not in asked_hosts
    assert site.files() <= before  # those of pages that were closed may go meanwhile


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(browser: Any, stop: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vidsieve", "app", "--port", "0", "--device", "cpu", "--json"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    line = process.stderr.readline()
    assert line.startswith("vidsieve: http://127.0.0.1:")
    visitor = Visitor(browser, line.split()[1])
    visitor.take_sample()
    assert any(tmp_path.iterdir())
    process.send_signal(stop)
    out, err = process.communicate(timeout=30)  # though a page is open
    assert (process.returncode, err) == (0, "")
    assert '"answered": 0' in out
    assert list(tmp_path.iterdir()) == []
    visitor.page.close()
