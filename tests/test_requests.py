"""Prompts to Requests: seeds, sizes, names, the three kinds of file, and what each kind of bad input says."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realgen.core.errors import InputError
from realgen.core.types import MAX_SEED, Request
from realgen.requests import file_stem, from_words, parse_size, read_requests


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, *, seed: int = 7, count: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        read_requests(path, seed=seed, count=count)
    assert "\n" not in caught.value.message
    return caught.value.message.replace(str(path), path.name)


def test_count_counts_up_from_the_seed() -> None:
    assert [request.seed for request in from_words(["a cat"], seed=7, count=4)] == [7, 8, 9, 10]


def test_every_prompt_gets_the_same_seeds() -> None:
    drawn = [(request.prompt, request.seed) for request in from_words(["a cat", " a dog\n"], seed=3, count=2)]
    assert drawn == [("a cat", 3), ("a cat", 4), ("a dog", 3), ("a dog", 4)]


@pytest.mark.parametrize(
    ("prompts", "seed", "count", "message"),
    [
        ([], 0, 1, "there is no prompt"),
        (["  "], 0, 1, "the prompt: the prompt is empty"),
        (["a", ""], 0, 1, "prompt 2: the prompt is empty"),
        (["x" * 100_000], 0, 1, "the prompt: the prompt has 100,000 characters; the limit is 2,000"),
        (["a\0b"], 0, 1, "holds a character that is no text"),
        (["a\udc80b"], 0, 1, "holds a character that is no text"),
        (["a"], -1, 1, "the seed is -1"),
        (["a"], 2**63, 1, "too large for 1 images"),
        (["a"], MAX_SEED, 2, "too large for 2 images"),
        (["a"], 0, 0, "cannot draw 0 images"),
    ],
)
def test_bad_words_are_refused(prompts: list[str], seed: int, count: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_words(prompts, seed=seed, count=count)
    assert message in caught.value.message


def test_the_limits_themselves_are_allowed() -> None:
    assert from_words(["x" * 2_000], seed=MAX_SEED)[0].seed == MAX_SEED


def test_text_skips_blank_lines_and_comments(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", b"\xef\xbb\xbfa cat\r\n\r\n# not this\r\n  a dog \rein Caf\xc3\xa9")
    assert [request.prompt for request in read_requests(path, seed=0)] == ["a cat", "a dog", "ein Café"]


def test_jsonl_rows_have_their_own_seed_size_and_name(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a cat", "seed": 3, "size": "128x96", "name": "cat"},
        {"prompt": "a dog", "size": [64, 32], "seed": None},
    ]
    path = write(tmp_path, "p.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_requests(path, seed=7, count=2) == [
        Request("a cat", 3, "cat", (128, 96)),
        Request("a cat", 4, "cat", (128, 96)),
        Request("a dog", 7, "", (64, 32)),
        Request("a dog", 8, "", (64, 32)),
    ]


def test_csv_rows_have_their_own_seed_size_and_name(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", 'name,prompt,seed,size\ncat,"a cat, asleep",3,128x96\n\n,a dog\n')
    assert read_requests(path, seed=7) == [Request("a cat, asleep", 3, "cat", (128, 96)), Request("a dog", 7)]


def test_stdin_is_lines_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a cat\na dog\n")))
    assert [request.prompt for request in read_requests("-", seed=0)] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a cat\na d\0og", "p.txt:2: a NUL byte"),
        ("p.txt", b"a cat\ncaf\xe9\n", "p.txt:2: byte 9 (0xe9) is not UTF-8"),
        ("p.txt", "a cat".encode("utf-16"), "p.txt:1: byte 0 (0xff) is not UTF-8"),
        ("p.txt", "a cat".encode("utf-16-le"), "p.txt:1: a NUL byte"),
        ("p.txt", "a cat\n" + "x" * 100_000, "p.txt:2: the prompt has 100,000 characters; the limit is 2,000"),
        ("p.txt", "", "p.txt: it holds no prompt"),
        ("p.txt", "# only this\n", "p.txt: it holds no prompt"),
        ("p.yaml", "a cat", "p.yaml: unknown kind of prompt file"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"', "p.jsonl:2: not JSON"),
        ("p.jsonl", "[" * 100_000, "p.jsonl:1: not JSON"),
        ("p.jsonl", '["a cat"]', "p.jsonl:1: not a JSON object"),
        ("p.jsonl", '{"prompt": ""}', "p.jsonl:1: the prompt is empty"),
        ("p.jsonl", '{"prompt": 3}', "p.jsonl:1: the prompt is 3"),
        ("p.jsonl", '{"prompt": "a", "sede": 3}', "p.jsonl:1: unknown column 'sede'"),
        ("p.jsonl", '{"seed": 3}', "p.jsonl:1: no column 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "p.jsonl:1: the seed is -1"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "p.jsonl:1: the seed is 1.5"),
        ("p.jsonl", '{"prompt": "a", "seed": true}', "p.jsonl:1: the seed is True"),
        ("p.jsonl", '{"prompt": "a", "seed": 9223372036854775808}', "p.jsonl:1: the seed is 9223372036854775808, too"),
        ("p.jsonl", '{"prompt": "a", "size": "128"}', "p.jsonl:1: cannot read the size '128'"),
        ("p.jsonl", '{"prompt": "a", "size": [128]}', "p.jsonl:1: the size is [128]"),
        ("p.jsonl", '{"prompt": "a", "size": [128, 0]}', "p.jsonl:1: the size is 128x0"),
        ("p.jsonl", '{"prompt": "a", "name": "../b"}', "p.jsonl:1: the name '../b' is a path"),
        ("p.jsonl", '{"prompt": "a", "name": 3}', "p.jsonl:1: the name is 3"),
        ("p.csv", "prompt,sede\na,1\n", "p.csv:1: unknown column 'sede'"),
        ("p.csv", "prompt,prompt\na,b\n", "p.csv:1: a column is there twice"),
        ("p.csv", "a cat\n", "p.csv:1: unknown column 'a cat'"),
        ("p.csv", "prompt\n", "p.csv: it holds no prompt"),
        ("p.csv", "prompt,seed\na,1,2\n", "p.csv:2: 3 cells under 2 columns"),
        ("p.csv", "prompt,seed\n,1\n", "p.csv:2: the prompt is empty"),
        ("p.csv", 'prompt,seed\n"a\nb",1\nc,x\n', "p.csv:4: the seed is 'x'"),
        ("p.csv", 'prompt\n"a cat\n', "p.csv:2: not CSV"),
        ("p.csv", "prompt\n" + "x" * 200_000, "p.csv:2: not CSV: field larger"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, name, content))


def test_a_seed_counts_up_to_the_largest_only(tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "seed": MAX_SEED}))
    assert read_requests(path, seed=0)[0].seed == MAX_SEED
    assert "p.jsonl:1: the seed is" in refusal(path, count=2)


def test_an_unknown_column_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_requests(write(tmp_path, "p.csv", "prompt,sede\na,1\n"), seed=0)
    assert caught.value.hint == "known: prompt, seed, size, name"


@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_an_unreadable_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError):
        read_requests(tmp_path / path, seed=0)


@given(width=st.integers(1, 16_384), height=st.integers(1, 16_384))
def test_a_size_is_read_back(width: int, height: int) -> None:
    assert parse_size(f"{width}x{height}") == (width, height)


@pytest.mark.parametrize(
    "text", ["", "128", "128x", "x96", "-1x96", "0x96", "1.5x2", "99999x1", "128x96x3", "\u0661x\u0662"]
)
def test_a_bad_size_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_size(text)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("old fisherman", "old fisherman"),
        ("cat.png", "cat"),
        (" v1.2 ", "v1.2"),
        ('a<b>:"c|d?*', "a_b___c_d__"),
        (".hidden", "hidden"),
        ("NUL", "_NUL"),
        ("Café 東京", "Café 東京"),
        ("a\tb", "a_b"),
    ],
)
def test_a_name_becomes_a_file_stem(name: str, stem: str) -> None:
    assert file_stem(name) == stem


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "../x", "a\0b", ".", " ", ".png"])
def test_a_path_or_nothing_is_no_name(name: str) -> None:
    with pytest.raises(InputError):
        file_stem(name)


@given(st.text(st.characters(exclude_characters="/\\\0"), max_size=300))
def test_any_stem_can_be_a_file_name(name: str) -> None:
    try:
        stem = file_stem(name)
    except InputError:
        return
    assert stem == stem.strip(" .")
    assert 1 <= len(stem.encode()) <= 121
    assert stem.isprintable()


@given(st.binary(max_size=200), st.sampled_from(["p.txt", "p.jsonl", "p.csv"]))
def test_any_bytes_are_requests_or_one_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = write(tmp_path_factory.getbasetemp(), name, data)
    try:
        said = [request.prompt for request in read_requests(path, seed=0)]
    except InputError as error:
        said = [error.message]
    assert said
    assert all(said)
    assert name == "p.csv" or not any("\n" in line for line in said)


def test_requests_of_a_search_lie_its_candidates_apart() -> None:
    """`-n 3 --best-of 4 --seed 7` draws seeds 7 to 18 and keeps one of every four."""
    assert [request.seed for request in from_words(["a"], seed=7, count=3, stride=4)] == [7, 11, 15]
    assert [request.seed for request in from_words(["a"], seed=7, count=3)] == [7, 8, 9]


def test_the_last_candidate_s_seed_has_room_too(tmp_path: Path) -> None:
    assert from_words(["a"], seed=MAX_SEED - 7, count=2, stride=4)[-1].seed == MAX_SEED - 3
    with pytest.raises(InputError, match="too large"):
        from_words(["a"], seed=MAX_SEED - 6, count=2, stride=4)
    rows = tmp_path / "rows.csv"
    rows.write_text(f"prompt,seed\na,{MAX_SEED - 2}\n")
    with pytest.raises(InputError, match=r"rows\.csv:2: the seed"):
        read_requests(rows, seed=0, stride=4)
    assert [request.seed for request in read_requests(rows, seed=0, stride=3)] == [MAX_SEED - 2]
