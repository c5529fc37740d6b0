"""Text in and out of a model: tokenizer, chat template, incremental decoding, stop strings. No torch."""
