//! The model inside the program: a small story-teller, used where no model is given.

/// What it is called in place of a path.
pub const NAME: &str = "built-in story-teller";

/// What a server calls it.
#[cfg(feature = "server")]
pub const SERVED_NAME: &str = "stories";

/// What a person who talks with it should know.
pub const BANNER: &str = "\
This is the built-in story-teller, a BitNet model of 5.8 million parameters trained on children's stories.
Type how a story begins and it goes on from there, each time anew. It knows nothing of the world, cannot
answer questions or follow instructions, and makes everything up. For those, bring a model with -m FILE.";

/// The GGUF file, if this program was built with it.
#[must_use]
pub fn model() -> Option<&'static [u8]> {
    #[cfg(feature = "built-in-model")]
    return Some(include_bytes!("../../../models/stories/stories.gguf"));
    #[cfg(not(feature = "built-in-model"))]
    None
}
