//! The built-in model.

use crate::{bitnet_with_input, json, output, text};

#[test]
fn the_built_in_model_tells_a_story() {
    let story = output(&["run", "Once upon a time", "-s", "1", "-n", "80"]);
    assert!(
        story.starts_with("Once upon a time") && story.split_whitespace().count() > 40,
        "{story}"
    );
    assert_eq!(
        story,
        output(&[
            "run",
            "Once upon a time",
            "-s",
            "1",
            "-n",
            "80",
            "-t",
            "1",
            "--kernels",
            "scalar"
        ])
    );
    let ids = json(&["tokenize", "Once upon a time", "--json"])["tokens"].clone();
    assert_eq!(
        ids,
        json(&["run", "Once upon a time", "-n", "1", "--json"])["prompt_tokens"]
    );
    let told = bitnet_with_input(
        &["chat", "-s", "1", "-n", "20"],
        "Once upon a time\n/quit\n",
    );
    assert!(
        text(&told.stdout).starts_with("Once upon a time"),
        "{}",
        text(&told.stdout)
    );
}
