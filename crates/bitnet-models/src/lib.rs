//! MODELS: files to checked views, configurations and the forward pass.
