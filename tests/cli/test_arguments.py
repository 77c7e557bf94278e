"""What is told of a mistake in the command: what the command needs, and what may have been meant."""

import shlex

import pytest

from vidsieve import registry
from vidsieve.cli import main
from vidsieve.cli.parser import parser
from vidsieve.errors import UnknownMethod

ENCODE = "usage: vidsieve encode CLIP ... --model MODEL --out DIR [options]; vidsieve encode --help shows them"
BATCH = ENCODE.replace("encode", "batch")
RUN = "usage: vidsieve run CLIP --question QUESTION --model MODEL [options]; vidsieve run --help shows them"
TOP = "usage: vidsieve COMMAND ... [options]; vidsieve --help shows them"
STORED = "encode clip.mp4 --model M --out stored"
ASKED = "run clip.mp4 --question What? --model M"


def told(capsys: pytest.CaptureFixture[str], command: str) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        main.main(shlex.split(command))
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("command", "usage", "error"),
    [
        ("encode", ENCODE, "the following arguments are required: CLIP, --model/-m, --out"),
        (
            "encode --question X",
            ENCODE,
            "no option --question; questions are asked later: vidsieve ask FILE --question",
        ),
        (f"{STORED} -q X", ENCODE, "no option -q; questions are asked later: vidsieve ask FILE --question"),
        ("batch c -m m --out o -q ''", BATCH, "no option -q; questions are asked later: vidsieve ask FILE --question"),
        (
            "batch c -m m --out o --question Who?",
            BATCH,
            "no option --question; questions are asked later: vidsieve ask FILE --question",
        ),
        ("encode clip.mp4 --modle M --out stored", ENCODE, "no option --modle; did you mean --model?"),
        ("encode clip.mp4 --modle=M --out stored", ENCODE, "no option --modle; did you mean --model?"),
        (f"{STORED} --zebra", ENCODE, "no option --zebra"),
        (
            f"{STORED} --dtype bfloat",
            ENCODE,
            "argument --dtype: expected one of auto, float32, bfloat16, float16; got ",
        ),
        (f"{ASKED} --fps 1", RUN, "no option --fps; vidsieve encode, plan, batch have it"),
        (f"{ASKED} -z", RUN, "no option -z"),
        ("encode clip.mp4 -m M -o stored", ENCODE, "no option -o; did you mean --out?"),
        (f"{ASKED} more", RUN, "expected nothing more, got more"),
        (
            "--keep 10% run clip.mp4",
            TOP,
            "no option --keep; options of a command stand behind it: vidsieve run ... --k",
        ),
        ("--vresion", TOP, "no option --vresion; did you mean --version?"),
        ("encod clip.mp4", TOP, "no command 'encod'; did you mean encode? There are run, show, "),
    ],
)
def test_a_mistake_shows_a_line_of_usage_of_its_command_and_what_is_wrong(
    command: str, usage: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, command)
    assert lines[0] == usage
    assert lines[1].startswith(f"vidsieve: error: {error}")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (f"{ASKED} --method visieve", "no method 'visieve'; did you mean vidsieve? There are vidsieve, moments, "),
        (f"{ASKED} --dtype bfloat", "got bfloat; did you mean bfloat16?"),
        (f"{ASKED} --keep 10", "such as 0.1 or 10%; got 10; did you mean 10%?"),
        (f"{ASKED} --keep 2.5", "got 2.5; did you mean 2.5%?"),
        ("bench ops --case default10", "no case 'default10'; did you mean default-10? There are "),
    ],
)
def test_a_value_that_is_nearly_right_is_told_as_it_may_have_been_meant(
    command: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meant in told(capsys, command)[-1]


@pytest.mark.parametrize("share", ["0", "-1", "110%", "101", "a"])
def test_nothing_is_suggested_where_percent_would_be_wrong_too(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, f"{ASKED} --keep={share}")[-1].endswith(f"such as 0.1 or 10%; got {share}")


def test_the_library_suggests_too() -> None:
    with pytest.raises(UnknownMethod, match=r"no method 'visieve'; did you mean vidsieve\? There are"):
        registry.method("visieve")
    with pytest.raises(ValueError, match=r"a share in \(0, 1\], such as 0\.1; got 10$"):
        registry.method("vidsieve")(10)
    with pytest.raises(ValueError, match=r"in \(0, 1\], such as 0\.3; got 30$"):
        registry.method("framefusion")(30)


@pytest.mark.parametrize(
    ("question", "keep"), [("-What?", "0.1"), ("--is it a dog", "0.1"), ("a=--b", "0.1"), ("-7", "10%")]
)
def test_a_value_may_look_like_an_option(question: str, keep: str) -> None:
    options = parser(main.COMMANDS).parse_args(["run", "c", "-m", "M", f"--question={question}", "--keep", keep])
    assert (options.question, options.keep) == (question, 0.1)


def test_an_option_may_be_shortened_where_one_begins_so() -> None:
    options = parser(main.COMMANDS).parse_args(["run", "c", "--mod", "M", "--quest", "-1 or 1?", "-q", "What?"])
    assert (options.model, options.question) == ("M", "What?")


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_option_says_what_it_is(name: str) -> None:
    for action in parser(main.COMMANDS).siblings[name]._actions:
        assert action.help, action.option_strings
        assert not action.help.startswith("("), action.option_strings  # its default alone
