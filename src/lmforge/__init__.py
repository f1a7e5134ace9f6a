"""lmforge makes a language model, whole: raw text in; corpus, tokenizer, GPT, compressed GPT, scores and a server
out."""

__version__ = "0.1.0"
