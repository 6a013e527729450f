"""Text -> token numbers as the fast tokenizers of Hugging Face give them, read from their tokenizer.json.

Goes into the bundles of text models as it is, beside predict.py; the standard library of Python 3.8 is enough for it.
WordPiece as BERT uses it and byte-level BPE as RoBERTa and GPT-2 do are worked out here; a tokenizer of another kind
needs the package `tokenizers`. Every mistake is a ValueError of one sentence.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any, Iterator

# Unicode's White_Space, which str.isspace() is not
_WHITE = frozenset(map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)])) | frozenset(
    "\u2028\u2029\u202f\u205f\u3000"
)
# The tables of the fast tokenizers are those of Unicode 8: they take marks, punctuation and format characters that came
# later (these ranges) for letters, and three that are others now for what they were.
_LATER = (
    "61d 7fd 890-8e2 9fd-9fe a76 afa-aff b55 c04-c3c c77 c84 d00 d3b-d3c d81 eba 180f-1886 1abf-1ace 1b7d-1b7e "
    "1df6-1dfb 2e43-2e5d a82c a8c5 a8ff a9bd 10d24-10f89 11070-11074 110c2-110cd 111c9 111cf 1123e 1133b 11438-1145e "
    "11660-1166c 116b9 1182f-11fff 12ff1-13438 16e97-16f4f 16fe2-16fe4 1cf00-1cf46 1e000-1e2ef 1e944-1e95f"
)
_RANGES = [(int(part.split("-")[0], 16), int(part.split("-")[-1], 16)) for part in _LATER.split()]
_ONCE_PUNCTUATION = "\u166d\U000111c9"
_ONCE_MARK = "\u1734"
_ASCII_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
# those that BertNormalizer sets apart; the fast tokenizers leave 2b820 to 2b91f out
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F), (0x2B920, 0x2CEAF),
            (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
# of GPT-2, over a string that has L for a letter, N for a number, W for white space that is no plain space
_SHAPES = re.compile(r" ?L+| ?N+| ?O+|[ W]+(?![^ W])|[ W]+")


class _Unknown(Exception):
    """This file does not work out such a tokenizer."""


def load(content: bytes) -> Any:
    """The tokenizer of a tokenizer.json; its `encode(text, length)` gives at most `length` numbers, special ones too.

    Raises ValueError.
    """
    try:
        return Tokenizer(json.loads(content.decode("utf-8")))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the tokenizer's file is not whole ({error!r})") from error
    except _Unknown as unknown:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(
                f"a tokenizer with {unknown} needs the package tokenizers (python -m pip install tokenizers)"
            ) from None
        return _Package(tokenizers.Tokenizer.from_str(content.decode("utf-8")))
    except ValueError as error:
        raise ValueError(f"the tokenizer's file is not JSON ({error})") from error


class _Package:
    """Another kind, through the package `tokenizers`."""

    def __init__(self, core: Any) -> None:
        core.no_padding()
        self._core = core

    def encode(self, text: str, length: int) -> list[int]:
        self._core.enable_truncation(length)
        return list(self._core.encode(_whole(text)).ids)


class Tokenizer:
    """WordPiece or byte-level BPE, from the parsed tokenizer.json. Raises _Unknown for everything else."""

    def __init__(self, found: dict[str, Any]) -> None:
        model = found["model"]
        kinds = [(found[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
        self._rules: dict[str, Any] = found["normalizer"] or {}
        self._normal("")  # says now if a rule is missing
        # older files do not name the kind of their model
        named = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
        if named == "WordPiece" and kinds[0] in (None, "BertNormalizer") and kinds[1] == "BertPreTokenizer":
            self._words: Any = _WordPiece(model)
        elif named == "BPE" and kinds == [None, "ByteLevel"]:
            self._words = _ByteLevel(model, found["pre_tokenizer"])
        else:
            parts = ", ".join(str(kind) for kind in (*kinds, named))
            raise _Unknown(f"the parts {parts}")
        self._before, self._after = _ends(found["post_processor"])
        added = [token for token in found.get("added_tokens") or [] if token["content"]]
        self._raw = _Added([(token["content"], token) for token in added if not token["normalized"]])
        self._cooked = _Added([(self._normal(token["content"]), token) for token in added if token["normalized"]])

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` numbers: a text is cut at its end. Raises ValueError where not even the special ones fit."""
        room = length - len(self._before) - len(self._after)
        if room < 0:
            raise ValueError(f"{length} tokens leave no room for those that every text has around it")
        numbers: list[int] = []
        for number in self._numbers(_whole(text)):
            if len(numbers) >= room:
                break
            numbers.append(number)
        return [*self._before, *numbers, *self._after]

    def _numbers(self, text: str) -> Iterator[int]:
        for part in self._raw.split(text):
            for piece in self._cooked.split(self._normal(part)) if isinstance(part, str) else [part]:
                if isinstance(piece, str):
                    yield from self._words.numbers(piece)
                else:
                    yield piece

    def _normal(self, text: str) -> str:
        rules = self._rules
        if not rules:
            return text
        if rules["clean_text"]:
            text = "".join(" " if c in _WHITE else c for c in text if c in "\t\n\r" or _kind(c) != "removed")
        if rules["handle_chinese_chars"]:
            text = "".join(f" {c} " if _is_chinese(c) else c for c in text)
        if rules["lowercase"] if rules["strip_accents"] is None else rules["strip_accents"]:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if _kind(c) != "mark")
        # letter by letter: the lower case of a whole word has another sigma at its end
        return "".join(c.lower() for c in text) if rules["lowercase"] else text


class _Added:
    """Tokens that are found in the text itself, before it is cut into words."""

    def __init__(self, tokens: list[tuple[str, dict[str, Any]]]) -> None:
        self._tokens = dict(tokens)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None

    def split(self, text: str) -> Iterator[str | int]:
        """The text between such tokens, and the numbers of the tokens, in order."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            token, start, end = self._tokens[match[0]], match.start(), match.end()
            around = text[max(0, start - 1) : start] + text[end : end + 1]
            if token["single_word"] and re.search(r"\w", around):
                continue
            while token["lstrip"] and start > done and text[start - 1] in _WHITE:
                start -= 1
            while token["rstrip"] and end < len(text) and text[end] in _WHITE:
                end += 1
            if done < start:
                yield text[done:start]
            yield int(token["id"])
            done = end
        if done < len(text):
            yield text[done:]


class _WordPiece:
    def __init__(self, model: dict[str, Any]) -> None:
        self._vocabulary: dict[str, int] = model["vocab"]
        self._unknown = self._vocabulary[model["unk_token"]]
        self._prefix: str = model["continuing_subword_prefix"]
        self._longest: int = model["max_input_chars_per_word"]

    def numbers(self, text: str) -> Iterator[int]:
        word = ""
        for c in text:
            kind = _kind(c)
            if c not in _WHITE and kind != "punctuation":
                word += c
                continue
            yield from self._pieces(word)
            word = ""
            if c not in _WHITE:
                yield from self._pieces(c)
        yield from self._pieces(word)

    def _pieces(self, word: str) -> list[int]:
        """The longest known beginning, then the longest known continuation; one unknown spoils the word."""
        if len(word) > self._longest:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = self._prefix if start else ""
            for end in range(len(word), start, -1):
                number = self._vocabulary.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            found.append(number)
            start = end
        return found


class _ByteLevel:
    def __init__(self, model: dict[str, Any], rules: dict[str, Any]) -> None:
        unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        for name in unusual:
            if model.get(name):
                raise _Unknown(f"the setting {name}")
        self._vocabulary: dict[str, int] = model["vocab"]
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = iter(range(256, 512))
        self._letters = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
        if model.get("unk_token") and not all(letter in self._vocabulary for letter in self._letters):
            raise _Unknown("unknown bytes")
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._space: bool = rules["add_prefix_space"]
        self._cut: bool = rules.get("use_regex", True)

    def numbers(self, text: str) -> Iterator[int]:
        if self._space and not text.startswith(" "):
            text = " " + text
        for word in _shaped(text) if self._cut else [text]:
            yield from self._pieces(word)

    def _pieces(self, word: str) -> list[int]:
        """Join the neighbours whose joining was learned first, until no two can be joined."""
        letters = (self._letters[byte] for byte in word.encode("utf-8"))
        parts = [letter for letter in letters if letter in self._vocabulary]
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, never) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == never:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self._vocabulary[part] for part in parts]


def _shaped(text: str) -> Iterator[str]:
    """GPT-2's words: contractions, and runs of letters, numbers or others with the space before them."""
    shapes = "".join(map(_shape, text))
    at = 0
    while at < len(text):
        match = _CONTRACTION.match(text, at) or _SHAPES.match(shapes, at)
        assert match is not None  # one of the four shapes always fits
        yield text[at : match.end()]
        at = match.end()


@lru_cache(maxsize=None)
def _shape(c: str) -> str:
    if c in _WHITE:
        return " " if c == " " else "W"
    return {"L": "L", "N": "N"}.get(unicodedata.category(c)[0], "O")


def _ends(processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """The numbers that go before and after every text."""
    kind = processor["type"] if processor else None
    if processor is None or kind == "ByteLevel":
        return [], []
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind == "Sequence":
        parts = [part for part in processor["processors"] if part["type"] != "ByteLevel"]
        if len(parts) <= 1:
            return _ends(parts[0] if parts else None)
    if kind != "TemplateProcessing":
        raise _Unknown(f"the post-processor {kind}")
    sides: list[list[int]] = [[]]
    for item in processor["single"]:
        if "Sequence" in item:
            sides.append([])
        else:
            sides[-1] += processor["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    if len(sides) != 2:
        raise _Unknown("a template that does not hold the text once")
    return sides[0], sides[1]


@lru_cache(maxsize=None)
def _kind(c: str) -> str:
    """What the fast tokenizers take a character for: removed, mark, punctuation or nothing of these."""
    code = ord(c)
    if c in _ASCII_PUNCTUATION or c in _ONCE_PUNCTUATION:
        return "punctuation"
    if any(first <= code <= last for first, last in _RANGES):
        return ""
    category = unicodedata.category(c)
    if category in ("Cc", "Cf", "Co") or code in (0, 0xFFFD):
        return "removed"
    return "mark" if category == "Mn" or c == _ONCE_MARK else "punctuation" if category[0] == "P" else ""


@lru_cache(maxsize=None)
def _is_chinese(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in _CHINESE)


def _whole(text: str) -> str:
    """Halves of characters, as a terminal with another encoding hands over, are no text; they become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
