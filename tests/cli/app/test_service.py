"""What a page asks and is told, without Gradio: answers of the bundled model, errors, and several visitors at once."""

import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.clips import write
from vidsieve.cli import demo, main, run
from vidsieve.cli.app.html import heading, table
from vidsieve.cli.app.serve import address, listen
from vidsieve.cli.app.service import Asked, Reply, Service, Settings, sample
from vidsieve.cli.app.visitors import Visitors
from vidsieve.errors import VidsieveError
from vidsieve.evaluation.needles.tiny import BUNDLED

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")
pytest.importorskip("transformers")
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Settings(device="cpu", max_new_tokens=4))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(sample(tmp_path_factory.mktemp("sample"))[0])


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("short") / "clip.mp4", count=8))


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def only(service: Service) -> Any:
    [(_, model)] = service._models.values()
    return model


def test_the_sample_is_answered_with_all_tokens_and_with_a_tenth(service: Service, clip: str, tmp_path: Path) -> None:
    question, right = demo.question()
    told: list[str] = []
    reply = service.ask(Asked(clip, question), tmp_path, told.append)
    assert reply.error == ""
    assert (reply.answer_unreduced, reply.answer) == (right, right)
    assert reply.tokens.startswith("576 video tokens -> 58 kept (10.1 %)")
    assert reply.titles == ("every token", "vidsieve, keep 0.1")
    numbers = {name: values for name, *values in reply.rows}
    assert numbers["prompt tokens"] == ["591", "73"]
    assert {"vision", "prefill", "first token"} <= numbers.keys()
    assert reply.pictures == {"png": tmp_path / "overlay.png"}
    assert reply.pictures["png"].exists()
    assert "warming up" in told


def test_a_film_is_drawn_where_it_is_asked_for(service: Service, tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", count=4)
    reply = service.ask(Asked(str(clip), "What?", film=True), tmp_path)
    assert sorted(path.name for path in reply.pictures.values()) == ["overlay.mp4", "overlay.png"]
    with av.open(str(reply.pictures["mp4"])) as film:
        assert film.streams.video[0].codec_context.name == "h264"


def broken(folder: Path) -> dict[str, Path]:
    """Uploads that are no clip, by what is said of them."""
    whole = write(folder / "whole.mp4").read_bytes()
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    made = {"is empty (0 bytes)": b"", "is not a video that can be decoded": b"hello\n" * 100}
    made |= {"cut off before the end of its index": whole[: len(whole) // 2]}
    paths = {says: folder / f"{number}.mp4" for number, says in enumerate(made)}
    for says, path in paths.items():
        path.write_bytes(made[says])
    return paths | {"has no video stream (only audio)": folder / "audio.mp4"}


def test_broken_uploads_are_told_in_the_line_that_run_prints(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for says, path in broken(tmp_path).items():
        reply = service.ask(Asked(str(path), "What?"), tmp_path / "out")
        assert says in reply.error
        assert reply.error.startswith(f"{path.name}: ")  # and not where the upload lies
        assert reply == Reply(error=reply.error)
        assert main.main(["run", str(path), "-q", "What?", "-m", str(BUNDLED)]) == 1
        assert capsys.readouterr().err == f"vidsieve: error: {path.parent}/{reply.error}\n"


def test_a_playlist_shows_no_other_file_of_the_machine(service: Service, short: str, tmp_path: Path) -> None:
    listed = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:0.3,\nfile://{short}\n#EXT-X-ENDLIST\n"
    for name in ("list.m3u8", "LIST.M3U8", "list.m3u", "list.mp4"):
        (tmp_path / name).write_text(listed)
        reply = service.ask(Asked(str(tmp_path / name), "What?"), tmp_path / "out")
        assert reply.error.startswith(f"{name}: ")
        assert reply == Reply(error=reply.error)


def test_a_clip_that_is_cut_short_is_answered_with_a_warning(service: Service, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", container={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: 3 * len(whole) // 4])
    reply = service.ask(Asked(str(tmp_path / "cut.mp4"), "What?"), tmp_path)
    assert reply.error == ""
    [warning] = reply.warnings
    assert warning.startswith("cut.mp4: is cut short")
    assert warning in heading(reply)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clip": None}, "expected a clip; upload one, or take the sample"),
        ({"question": " "}, "expected a question"),
        ({"model": "magic"}, "no model 'magic'; there are "),
        ({"method": "magic"}, "no method 'magic'; there are vidsieve, "),
        (
            {"keep": 0},
            "keep is the fraction of the video tokens that stays, a share in (0, 1], such as 0.1; got 0",
        ),
    ],
    ids=["clip", "question", "model", "method", "keep"],
)
def test_what_cannot_be_asked_is_told(
    service: Service, clip: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    reply = service.ask(Asked(**{"clip": clip, "question": "What?"} | change), tmp_path)
    assert reply.error.startswith(says)


def test_an_error_while_the_model_answers_leaves_no_hook(
    service: Service, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = only(service)
    before = hooks(model), service.answered
    right = service.ask(Asked(short, "What?"), tmp_path)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory\nof this device")

    with monkeypatch.context() as patch:
        patch.setattr(model.get_decoder(), "forward", fails)
        assert service.ask(Asked(short, "What?"), tmp_path).error == "CUDA out of memory of this device"
    assert hooks(model) == before[0]
    assert service.ask(Asked(short, "What?"), tmp_path).answer == right.answer
    assert service.answered == before[1] + 2


def test_two_visitors_at_once_get_what_each_gets_alone(
    service: Service, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attached methods on one model would be refused, or mixed."""
    inside: list[int] = []
    most: list[int] = []

    def counted(*arguments: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        try:
            return run.run(*arguments)
        finally:
            inside.pop()

    asked = [Asked(short, "What?", method=name, keep=keep) for name, keep in (("vidsieve", 0.1), ("dart", 0.5))]
    alone = [service.ask(one, tmp_path) for one in asked]
    together: dict[int, Reply] = {}

    def ask(number: int) -> None:
        together[number] = service.ask(asked[number], tmp_path / str(number))

    monkeypatch.setattr("vidsieve.cli.app.service.run", counted)
    threads = [Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1]
    for number, other in enumerate(alone):
        one = together[number]
        assert (one.error, one.answer, one.answer_unreduced) == ("", other.answer, other.answer_unreduced)
        assert (one.tokens, one.spans, one.rows[0]) == (other.tokens, other.spans, other.rows[0])
    assert together[0].tokens != together[1].tokens


def test_a_service_that_is_stopped_ends_what_it_answers_at_the_next_step(
    service: Service, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_stopped", False)
    begun, told = Event(), []

    def note(what: str) -> None:
        told.append(what)
        if what == "warming up":
            begun.set()
            while not service._stopped:
                time.sleep(0.01)

    replies: list[Reply] = []
    thread = Thread(target=lambda: replies.append(service.ask(Asked(short, "What?"), tmp_path, note)))
    thread.start()
    begun.wait()
    service.stop(60)
    thread.join()
    assert replies == [Reply(error="the command was stopped")]
    assert told[-1] == "warming up"
    assert hooks(only(service)) == 0
    assert service.ask(Asked(short, "What?"), tmp_path).error == "the command was stopped"


def test_models_are_named_and_one_of_the_visitor_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = str(demo.copy_model(tmp_path / "model"))
    service = Service(Settings([copy], device="cpu"))
    assert service.models == [(copy, copy), ("vidsieve-tiny (bundled)", str(BUNDLED))]
    monkeypatch.setattr("vidsieve.cli.app.service.load", None)  # none is loaded before all are found
    with pytest.raises(VidsieveError, match="no such folder"):
        Service(Settings([copy, str(tmp_path / "absent")]))


def test_what_a_model_or_a_file_says_is_no_html() -> None:
    assert "<script>" not in heading(Reply(error="<script>.mp4: is empty"))
    assert "<script>" not in heading(Reply(warnings=("<script>.mp4: is cut short",)))
    assert "<b>x" not in table(Reply(titles=("", "<b>x"), rows=(("<b>x", "", "<b>x"),), spans="<b>x"))
    assert table(Reply(error="no")) == ""


def test_files_go_when_no_page_shows_them(tmp_path: Path) -> None:
    def made(name: str) -> Path:
        path = tmp_path / name / "clip.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    visitors, shared, second, sheet = Visitors(), made("shared"), made("second"), made("sheet")
    visitors.shows("a", clip=shared, sheet=sheet)
    visitors.shows("b", clip=shared)
    visitors.shows("a", clip=second)
    assert shared.exists()  # b shows it
    assert sheet.exists()
    visitors.leaves("b")
    assert not shared.parent.exists()
    visitors.shows("a", clip=None)
    assert not second.exists()
    visitors.shows("a", sheet=sheet)
    assert sheet.exists()  # the same again
    visitors.leaves("a")
    visitors.leaves("a")
    assert list(tmp_path.iterdir()) == []


def test_it_listens_on_this_machine_and_says_where() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(VidsieveError, match=f"cannot listen at port {port} of 127.0.0.1 .*choose another"):
            listen("127.0.0.1", port)
    with pytest.raises(VidsieveError, match="choose another --host"):
        listen("no.such.host.invalid", 0)


def parsed(*arguments: str) -> Any:
    return main.parser(main.COMMANDS).parse_args(["app", *arguments])


def test_options_are_loopback_and_one_gigabyte_unless_told() -> None:
    options = parsed()
    assert (options.host, options.port, options.max_upload, options.models) == ("127.0.0.1", 7860, 2**30, None)
    options = parsed("--port", "0", "--max-upload", "1.5mb", "-m", "one", "-m", "two")
    assert (options.port, options.max_upload, options.models) == (0, 1536 * 1024, ["one", "two"])
    assert parsed("--max-upload", "700 B").max_upload == 700


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "65536"], "expected a port from 0 to 65535; got 65536"),
        (["--port", "http"], "expected a port"),
        *(
            (["--max-upload", size], f"expected a size, such as 500MB or 1.5GB; got {size}")
            for size in ("0GB", "5", "big")
        ),
    ],
)
def test_mistakes_exit_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["app", *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is as before in the end
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main.main(["app"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "this needs gradio" in said
    assert "[app]" in said
