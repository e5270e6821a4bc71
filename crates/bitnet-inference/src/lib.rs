//! ENGINE: requests to tokens: sampling, sequences, the block pool, generation.
