"""Small tokenizers of every kind, built here, and the text that tries them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jitney.runtime.text.definition import TokenizerDefinition
from jitney.runtime.text.tokenizer import ModelTokenizer

CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    "hello", "world", "The", "quick", "naïve", "façade", "Straße", "東京", "世界", "你好", "안녕", "мир", "שלום",
    "مرحبا", "हिन्दी", "e\u0301", "n\u0303", "a\u0308\u0323", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👍🏽", "🇩🇪",
    "😀", "𝄞", "\u200b", "…", "—", " ", "  ", "\n", "\t", ".", ",", "!", "1234", "x = 3;", "{}", "don't", "\ufeff",
    "\u0000", "<", "|", ">",
]  # fmt: skip
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def random_text(random_: random.Random, longest: int = 12) -> str:
    words = random_.choices(WORDS, k=random_.randint(1, longest))
    return "".join(word + random_.choice(["", " "]) for word in words)


def byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return library


def tiny_bytes() -> tokenizers.Tokenizer:
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(CONTROL)
    return library


def sentencepiece(*, metaspace: bool = False) -> tokenizers.Tokenizer:
    pieces = [
        "▁",
        "h",
        "e",
        "l",
        "o",
        "w",
        "r",
        "d",
        "T",
        "世",
        "界",
        "é",
        ".",
        "1",
        "2",
        "▁h",
        "he",
        "ll",
        "▁w",
    ]
    tokens = [*CONTROL, *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "h"), ("h", "e"), ("l", "l"), ("▁", "w")]
    library = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if metaspace:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.add_special_tokens(CONTROL)
    return library


def pieces_alone() -> tokenizers.Tokenizer:
    """SentencePiece without bytes to fall back to."""
    vocab = {token: index for index, token in enumerate([*CONTROL, "▁", *"helowrdTé世界.12", "▁h", "ll"])}
    library = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "h"), ("l", "l")], unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    library.add_special_tokens(CONTROL)
    return library


def wordpiece() -> tokenizers.Tokenizer:
    tokens = [
        *CONTROL,
        "hello",
        "world",
        "##s",
        "##ing",
        "the",
        "東",
        "京",
        ".",
        ",",
        "'",
        "##ly",
        "quick",
        "1",
        "##2",
        "!",
    ]
    vocab = {token: index for index, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    library.add_special_tokens(CONTROL)
    return library


KINDS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": lambda: sentencepiece(metaspace=True),
    "pieces_alone": pieces_alone,
    "wordpiece": wordpiece,
    "tiny_bytes": tiny_bytes,
}


class Pair:
    """The same tokenizer twice: the library's own, as the oracle, and ours."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.library: tokenizers.Tokenizer = KINDS[kind]()
        self.spec: dict[str, Any] = json.loads(self.library.to_str())
        self.size = self.library.get_vocab_size()
        self.ours = self.build()

    def build(self, **options: Any) -> ModelTokenizer:
        fields = {"chat_template": CHATML, "names": {"bos_token": "<s>", "eos_token": "</s>"}} | options
        definition = TokenizerDefinition(source="tokenizer.json", spec=self.spec, **fields)
        return ModelTokenizer(definition, self.size + 8)


@pytest.fixture(scope="session", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="session")
def byte_level_pair() -> Pair:
    return Pair("byte_level")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    random_ = random.Random(3)
    return [random_text(random_) for _ in range(400)]
