//! The model inside the program: a small story-teller, used if no model is given.

/// Its name in messages and receipts.
pub const NAME: &str = "built-in story-teller";

/// Its name in the API of a server.
#[cfg(feature = "server")]
pub const SERVED_NAME: &str = "stories";

/// The introduction that `bitnet chat` prints.
pub const BANNER: &str = "\
This is the built-in story-teller, a BitNet model of 5.8 million parameters trained on children's stories.
Type the beginning of a story, and it continues. Each line starts a new story. It knows nothing about the
world and cannot answer questions or follow instructions. For those, name another model with -m FILE.";

/// The GGUF file, if this program was built with it.
#[must_use]
pub fn model() -> Option<&'static [u8]> {
    #[cfg(feature = "built-in-model")]
    return Some(include_bytes!("../../../models/stories/stories.gguf"));
    #[cfg(not(feature = "built-in-model"))]
    None
}
