"""Text files to batches: the tokenizer, the mixture, and packing.

A data file is UTF-8 text whose documents are separated by lines `<|endoftext|>`. On the command line it is written
`FILE` or `FILE:SHARE`; SHARE is the part of its documents that each epoch draws at random (default 1).
"""
import random
import re

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
NUM_SPECIAL = 8
# Llama 3's pattern: GGUF files name it `tokenizer.ggml.pre = llama-bpe`.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "`": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " "})


def read_documents(path):
    """The documents of one file, with typographic quotes and dashes made plain and runs of blanks made single."""
    text = open(path, encoding="utf-8").read().translate(PLAIN)
    text = re.sub(r"[ \t]+", " ", text.replace("\r", ""))
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text))
    return [d for d in (d.strip() for d in text.split("<|endoftext|>")) if d]


def parse_source(argument):
    """`FILE[:SHARE]` to (path, share)."""
    path, _, share = argument.rpartition(":")
    return (path, float(share)) if path and re.fullmatch(r"[0-9.]+", share) else (argument, 1.0)


def train_tokenizer(documents, vocab_size):
    """Byte-level BPE with Llama 3's pattern. No token holds two digits; the last NUM_SPECIAL ids are special."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Digits(individual_digits=True), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL, initial_alphabet=alphabet, show_progress=False))
    # Without merges of digits the plain pattern gives the same tokens, and is the one every reader knows.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    specials = [BOS, EOS] + [f"<|reserved_special_token_{i}|>" for i in range(NUM_SPECIAL - 2)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    assert tokenizer.get_vocab_size() == vocab_size, f"{tokenizer.get_vocab_size()} tokens, expected {vocab_size}"
    return tokenizer


def encode_documents(tokenizer, documents, context):
    """Each document as BOS … EOS, cut into pieces of at most `context` + 1 tokens; later pieces have no BOS."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    pieces = []
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids = np.array([bos, *encoding.ids, eos], np.int32)
        pieces += [ids[i:i + context + 1] for i in range(0, len(ids) - 1, context)]
    return pieces


class Mixture:
    """An endless, seeded stream of batches of exactly `batch_tokens` tokens.

    `sources`: list of (pieces, share). In the second stage only sources with share 1 or more are read. The place in
    the stream is `state()`, three numbers, and `restore` goes back to it.
    """

    def __init__(self, sources, batch_tokens, seed):
        self.sources, self.batch_tokens, self.seed = sources, batch_tokens, seed
        self.stage, self.epoch, self.index = 1, -1, 0
        self.batches = []

    def state(self):
        return self.stage, self.epoch, self.index

    def restore(self, state):
        stage, epoch, index = state
        self.start_epoch(stage, epoch)
        self.index = index

    def start_epoch(self, stage, epoch):
        """Draws, shuffles and packs one epoch; what is left over at its end is dropped."""
        rng = random.Random(f"{self.seed} {stage} {epoch}")
        pieces = []
        for source, share in self.sources:
            if stage == 1 or share >= 1:
                whole = int(share)
                pieces += source * whole + rng.sample(source, round((share - whole) * len(source)))
        rng.shuffle(pieces)
        self.stage, self.epoch, self.index, self.batches = stage, epoch, 0, []
        batch, room = [], self.batch_tokens
        for piece in pieces:
            batch.append(piece[:room + 1])
            room -= len(batch[-1]) - 1
            if room == 0:
                self.batches.append(batch)
                batch, room = [], self.batch_tokens

    def next(self, stage):
        """The next batch: (inputs [T], targets [T], lengths), lengths[i] tokens of piece i standing in a row."""
        if stage != self.stage or self.index == len(self.batches):
            self.start_epoch(stage, self.epoch + 1)
        batch = self.batches[self.index]
        self.index += 1
        return np.concatenate([p[:-1] for p in batch]), np.concatenate([p[1:] for p in batch]), [len(p) - 1 for p in batch]
