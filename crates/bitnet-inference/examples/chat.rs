//! Talks with a model over two turns, with a chat template:
//! `cargo run --release -p bitnet-inference --example chat`

use std::error::Error;
use std::path::Path;

use bitnet_inference::{Completion, Device, EngineOptions, ModelSource, OpenModel, Request};
use bitnet_tokenizers::{ChatMessage, ChatTemplate, RenderOptions};

/// The story model of this repository. It was not trained to chat: use a chat model instead.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/stories/stories.gguf"
);

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let questions = ["Tell me about a cat.", "And a dog?"];
    for (question, answer) in questions.iter().zip(chat(Path::new(MODEL), &questions)?) {
        let cached = answer.finish.timings.cached_tokens;
        println!(
            "> {question}\n{}\n[{cached} prompt tokens cached]\n",
            answer.text
        );
    }
    Ok(())
}

/// Asks the questions one after the other, in one conversation.
pub fn chat(path: &Path, questions: &[&str]) -> Result<Vec<Completion>, Box<dyn Error>> {
    let source = ModelSource::Path(path.to_owned());
    let model = OpenModel::open(source, Device::default(), Default::default())?;
    let tokenization = model.tokenization.as_ref().ok_or("no tokenizer")?;
    let tokenizer = &tokenization.tokenizer;

    // A chat model's file has a template; this one gets a common one.
    let template = match &tokenization.chat_template {
        Ok(Some(template)) => template.clone(),
        _ => ChatTemplate::by_name("chatml", tokenizer)?.into(),
    };
    let driver = model.start(EngineOptions::default())?;
    let (mut messages, mut answers) = (Vec::new(), Vec::new());
    for question in questions {
        messages.push(ChatMessage::new("user", *question));
        let prompt = template.render(&messages, RenderOptions::default())?;
        let request = Request {
            prompt: tokenizer.encode_chat(&prompt)?,
            stop_ids: tokenizer.stop_ids().to_vec(),
            max_tokens: Some(40),
            ..Request::default()
        };
        // Tokens that the conversation has had before come from the cache.
        let answer = driver.stream(request)?.wait()?;
        messages.push(ChatMessage::new("assistant", answer.text.clone()));
        answers.push(answer);
    }
    Ok(answers)
}
