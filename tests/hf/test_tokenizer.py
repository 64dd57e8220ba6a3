"""Tokenizers for Hugging Face: the ids and the text of the task, saved and loaded."""

import pytest
import torch
from hf_cases import PlainText, pair

import thinkers
from thinkers.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    distinct_characters,
)
from thinkers.tasks import TASKS
from thinkers.tasks.number_task import NumberTask

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extras

LINES = [
    "Three words, then   blanks;\ttabs\nand lines.\r\n",
    "naïve façade ÿÀõ → 世界 🙂 “quoted” … e\u0301\n",
    "<|endoftext|> <start> </s> [PAD] ##ing ▁ Ġ 12+34=46\n\n",
]
TEXT = "".join(LINES[i % 3][i % 7 :] for i in range(90))[:3000]


def of_text(kind):
    if kind == "character":
        return PlainText(CharacterTokenizer(distinct_characters([TEXT])))
    return PlainText(ByteTokenizer() if kind == "byte" else BPETokenizer.train([TEXT], 400))


@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_a_text_has_the_ids_of_the_task_and_is_decoded_as_it_was(kind, tmp_path):
    task = of_text(kind)
    assert len(TEXT) == 3000
    made = thinkers.hf.tokenizer_of(task)
    made.save_pretrained(tmp_path)
    for found in (made, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        ids = found(TEXT)["input_ids"]
        assert ids == task.encode(TEXT)
        assert found.decode(ids) == TEXT == found.decode(ids, skip_special_tokens=True)
        assert len(found) == len(task.tokenizer) and set(found(TEXT)) == {
            "input_ids",
            "attention_mask",
        }
        assert found.padding_side == "left"
        for word in ("<|endoftext|>", "ÿ", " <start>"):
            assert found(word)["input_ids"] == task.encode(word)
        if kind == "character":
            assert found.pad_token is None
            with pytest.raises(Exception, match="[Uu][Nn][Kk]"):
                found("ж")
            continue
        padded = found([TEXT[:4], TEXT], padding=True)
        assert padded["input_ids"][0][0] == found.pad_token_id < len(found)
        assert padded["attention_mask"][0][0] == 0


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text"])
def test_a_task_has_a_tokenizer_with_its_ids_and_text_unless_numbers_are_reversed(name, tmp_path):
    task = thinkers.build_task(name)
    if isinstance(task, NumberTask) and task.least_significant_first:
        with pytest.raises(thinkers.ThinkersError, match="depends? on those beside them"):
            thinkers.hf.tokenizer_of(task)
        return
    thinkers.hf.tokenizer_of(task).save_pretrained(tmp_path)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(found) == task.vocab_size
    batch = task.batch(3, 20, "train")
    ends = batch.lengths if batch.prompt_lengths is None else batch.prompt_lengths
    texts = [task.decode(row[:end]) for row, end in zip(batch.tokens, ends, strict=True)]
    for text in texts:
        ids = found(text)["input_ids"]
        assert ids == task.encode(text), text
        assert found.decode(ids, skip_special_tokens=True) == task.decode(ids)
    if task.start_token is not None:
        assert found.bos_token_id == task.start_token == found(texts[0])["input_ids"][0]
    unnamed = [x for x in found.get_vocab() if x.startswith("<") and len(x) > 1]
    for word in unnamed:  # no text is read as a token that has no text
        for text in (word, word + texts[0], f"{texts[0]}{word}", f"{texts[0]} {word.upper()}"):
            try:
                right = task.encode(text)
            except thinkers.ThinkersError:
                with pytest.raises(Exception, match=r"\[UNK\]"):
                    found(text)
                continue
            assert found(text)["input_ids"] == right, text
    if found.pad_token is not None:
        padded = found(texts[:4], padding=True, return_tensors="pt")
        lengths = padded["attention_mask"].sum(1)
        assert task.decode([found.pad_token_id]) == ""
        assert lengths.tolist() == [len(task.encode(text)) for text in texts[:4]]


def test_prompts_of_a_tokenizer_are_continued_as_those_of_the_task():
    task = thinkers.build_task("copy", max_length=5)
    model, copy = pair("looped", None, vocab_size=task.vocab_size)
    tokenizer = thinkers.hf.tokenizer_of(task)
    prompts = ["123=", "4=", "98765="]
    rows = [task.encode(text) for text in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    out = copy.generate(**given, max_new_tokens=4, do_sample=False)
    assert torch.equal(out[:, width:], model.generate(tokens, 4, None, lengths)[:, width:])
