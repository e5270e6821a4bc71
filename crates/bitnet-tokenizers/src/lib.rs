//! TEXT to IDS: tokenizers, incremental detokenization and chat templates.
