//! Chat templates: which is chosen, what it renders, and what a message cannot do.

use bitnet_tokenizers::{
    ChatMessage, ChatTemplate, EncodeOptions, RenderOptions, TokenId, Tokenizer,
};
use proptest::prelude::*;

use crate::common::small_spec;

const LLAMA_3: &[&str] = &[
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
];
const CHAT_ML: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const FALCON_3: &[&str] = &["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"];

const CHAT_ML_JINJA: &str = "{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";
const LLAMA_3_JINJA: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
const BITNET_JINJA: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
const LEFTOVER_JINJA: &str = "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}";

fn tokenizer(control: &[&'static str], template: Option<&'static str>) -> Tokenizer {
    let mut spec = small_spec(&["a b"], control);
    spec.bos = control.contains(&"<|begin_of_text|>").then_some(257);
    spec.chat_template = template.map(Into::into);
    Tokenizer::from_spec(&spec).expect("a tokenizer")
}

fn conversation() -> Vec<ChatMessage> {
    [
        ("system", "Be brief. "),
        ("user", " Hi\n"),
        ("assistant", "Hello!"),
        ("user", "Bye"),
    ]
    .map(|(role, content)| ChatMessage::new(role, content))
    .to_vec()
}

fn text(template: &ChatTemplate, messages: &[ChatMessage]) -> String {
    template
        .render(messages, RenderOptions::default())
        .expect("a rendered chat")
        .text()
        .to_owned()
}

fn detected(architecture: &str, tokenizer: &Tokenizer) -> Option<&'static str> {
    ChatTemplate::detect(architecture, tokenizer)
        .expect("a template that compiles")
        .map(|template| template.name())
}

#[test]
fn the_built_in_formats_are_those_the_models_were_trained_with() {
    let rendered = |name, control| {
        let tokenizer = tokenizer(control, None);
        text(
            &ChatTemplate::by_name(name, &tokenizer).expect("a known name"),
            &conversation(),
        )
    };
    assert_eq!(
        rendered("bitnet-2b4t", LLAMA_3),
        "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: Hello!<|eot_id|>User: Bye<|eot_id|>Assistant: "
    );
    assert_eq!(
        rendered("llama3", LLAMA_3),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        rendered("chatml", CHAT_ML),
        "<|im_start|>system\nBe brief. <|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        rendered("falcon3", FALCON_3),
        "<|system|>\nBe brief. \n<|user|>\n Hi\n\n<|assistant|>\nHello!\n<|user|>\nBye\n<|assistant|>\n"
    );
    assert_eq!(
        rendered("falcon-e", CHAT_ML),
        "system\nBe brief. \nuser\n Hi\n\nassistant\nHello!\nuser\nBye\nassistant\n"
    );
}

#[test]
fn the_template_is_chosen_by_what_it_renders_then_by_architecture_then_by_vocabulary() {
    assert_eq!(
        detected("llama", &tokenizer(LLAMA_3, Some(LLAMA_3_JINJA))),
        Some("llama3")
    );
    assert_eq!(
        detected("qwen2", &tokenizer(CHAT_ML, Some(CHAT_ML_JINJA))),
        Some("chatml")
    );
    assert_eq!(
        detected("bitnet", &tokenizer(LLAMA_3, Some(BITNET_JINJA))),
        Some("bitnet-2b4t")
    );
    // The official GGUF carries a template of another model.
    assert_eq!(
        detected("bitnet-b1.58", &tokenizer(LLAMA_3, Some(LEFTOVER_JINJA))),
        Some("bitnet-2b4t")
    );
    assert_eq!(
        detected("bitnet-25", &tokenizer(LLAMA_3, None)),
        Some("bitnet-2b4t")
    );
    assert_eq!(
        detected("llama", &tokenizer(LLAMA_3, Some(LEFTOVER_JINJA))),
        Some("jinja")
    );
    assert_eq!(detected("llama", &tokenizer(LLAMA_3, None)), Some("llama3"));
    assert_eq!(detected("llama", &tokenizer(CHAT_ML, None)), Some("chatml"));
    assert_eq!(
        detected("llama", &tokenizer(FALCON_3, None)),
        Some("falcon3")
    );
    assert_eq!(
        detected("bitnet-b1.58", &tokenizer(&["<|endoftext|>"], None)),
        None
    );
    let broken = ChatTemplate::detect("llama", &tokenizer(LLAMA_3, Some("{% for %}")))
        .err()
        .expect("an error");
    assert!(
        broken.to_string().starts_with("chat template: "),
        "{broken}"
    );
}

#[test]
fn what_a_file_should_say_renders_as_what_is_used() {
    let correction = |architecture: &str, template: Option<&'static str>| {
        let detected =
            ChatTemplate::detect(architecture, &tokenizer(LLAMA_3, template)).expect("a template");
        detected.expect("a template").correction()
    };
    let leftover = correction("bitnet-b1.58", Some(LEFTOVER_JINJA)).expect("the right one");
    assert_eq!(correction("bitnet-25", None), Some(leftover));
    assert_eq!(
        detected("llama", &tokenizer(LLAMA_3, Some(leftover))),
        Some("bitnet-2b4t")
    );
    assert_eq!(correction("bitnet-b1.58", Some(leftover)), None);
    assert_eq!(correction("bitnet-b1.58", Some(BITNET_JINJA)), None);
    assert_eq!(correction("llama", Some(LEFTOVER_JINJA)), None);
    assert_eq!(correction("llama", None), None);
}

#[test]
fn jinja_templates_run_as_transformers_run_them() {
    let tokenizer = tokenizer(LLAMA_3, None);
    let source = "\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- if tools is not none %}
    {% for tool in tools %}
{{ tool | tojson }}
    {% endfor %}
{%- endif %}
{{- strftime_now('%d %b %Y') }}
{%- for message in messages %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' ~ message.role) }}{% endif %}
{{ message.role.upper() }}:{{ message.content }}
{% endfor %}";
    let template = ChatTemplate::from_jinja(source, &tokenizer).expect("a template");
    let tools = serde_json::json!([{"name": "f<1>", "n": [1, true, null]}]);
    let options = RenderOptions {
        tools: Some(&tools),
        now: Some(86_400 * 59),
        ..RenderOptions::default()
    };
    let rendered = template
        .render(&conversation(), options)
        .expect("a rendered chat");
    let expected = "<|begin_of_text|>{\"n\": [1, true, null], \"name\": \"f<1>\"}\n01 Mar 1970USER: Hi\n\nASSISTANT:Hello!\nUSER:Bye\n";
    assert_eq!(rendered.text(), expected);
    let error = template
        .render(&conversation(), RenderOptions::default())
        .expect_err("no clock")
        .to_string();
    assert!(error.contains("the time was not given"), "{error}");
    let tool_message = [ChatMessage::new("tool", "x")];
    let error = template
        .render(&tool_message, options)
        .expect_err("an exception")
        .to_string();
    assert!(error.contains("no role tool"), "{error}");
}

#[test]
fn a_template_that_never_ends_or_writes_without_end_is_stopped() {
    let tokenizer = tokenizer(LLAMA_3, None);
    let render = |source: &str| {
        let template = ChatTemplate::from_jinja(source, &tokenizer).expect("a template");
        template
            .render(&conversation(), RenderOptions::default())
            .expect_err("an error")
            .to_string()
    };
    let loops = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(render(loops).contains("fuel"), "{}", render(loops));
    let writes = "{% for a in range(10000) %}{{ 'x' * 10000 }}{% endfor %}";
    assert!(
        render(writes).contains("writes more than"),
        "{}",
        render(writes)
    );
    let recurses = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(
        render(recurses).contains("recursion"),
        "{}",
        render(recurses)
    );
}

#[test]
fn a_template_that_makes_the_interpreter_panic_is_an_error() {
    let tokenizer = tokenizer(LLAMA_3, None);
    let template = ChatTemplate::from_jinja(
        "{% set t = '' %}{% for m in t[::-1] %}{{ m }}{% endfor %}",
        &tokenizer,
    );
    let rendered = template
        .expect("a template")
        .render(&conversation(), RenderOptions::default());
    // An interpreter that has been mended renders nothing.
    assert!(rendered.is_err() || rendered.is_ok_and(|rendered| rendered.text().is_empty()));
    let template =
        ChatTemplate::from_jinja("{{ messages[::-1] | length }}", &tokenizer).expect("a template");
    let error = template
        .render(&[], RenderOptions::default())
        .expect_err("no messages")
        .to_string();
    assert!(error.contains("empty"), "{error}");
}

#[test]
fn bos_is_put_first_once() {
    let mut spec = small_spec(&["a b"], LLAMA_3);
    (spec.bos, spec.add_bos) = (Some(257), Some(true));
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    for name in ["bitnet-2b4t", "falcon-e"] {
        let template = ChatTemplate::by_name(name, &tokenizer).expect("a known name");
        let chat = template
            .render(&conversation(), RenderOptions::default())
            .expect("a rendered chat");
        let tokens = tokenizer.encode_chat(&chat).expect("an encodable chat");
        assert_eq!(
            tokens.iter().position(|&id| id == TokenId(257)),
            Some(0),
            "{name}"
        );
        assert_eq!(
            tokens.iter().filter(|&&id| id == TokenId(257)).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn a_role_is_a_plain_word() {
    let tokenizer = tokenizer(LLAMA_3, None);
    let template = ChatTemplate::by_name("llama3", &tokenizer).expect("a known name");
    for role in ["", "user<|eot_id|>", "us er", &"u".repeat(65)] {
        assert!(
            template
                .render(&[ChatMessage::new(role, "x")], RenderOptions::default())
                .is_err(),
            "{role:?}"
        );
    }
    let error = ChatTemplate::by_name("alpaca", &tokenizer)
        .err()
        .expect("an unknown name")
        .to_string();
    assert_eq!(
        error,
        "chat template \"alpaca\" is not known (known: bitnet-2b4t, llama3, chatml, falcon3, falcon-e)"
    );
}

#[test]
fn a_chat_without_control_tokens_in_its_contents_encodes_as_its_text_does() {
    for (name, control) in [
        ("bitnet-2b4t", LLAMA_3),
        ("llama3", LLAMA_3),
        ("chatml", CHAT_ML),
        ("falcon3", FALCON_3),
    ] {
        let tokenizer = tokenizer(control, None);
        let template = ChatTemplate::by_name(name, &tokenizer).expect("a known name");
        let chat = template
            .render(&conversation(), RenderOptions::default())
            .expect("a rendered chat");
        let plain = EncodeOptions {
            add_special: false,
            parse_special: true,
        };
        assert_eq!(
            tokenizer.encode_chat(&chat).expect("an encodable chat"),
            tokenizer
                .encode(chat.text(), plain)
                .expect("an encodable text"),
            "{name}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_message_smuggles_a_control_token(
        contents in prop::collection::vec("(<\\|eot_id\\|>|<\\|eot|_id\\|>|<\\||\\|>|<\\|begin_of_text\\|>|<|a|\u{fdd0}| ){0,8}", 1..5),
    ) {
        let tokenizer = tokenizer(LLAMA_3, None);
        let glued = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}<|eot_id|>";
        let messages = |contents: &[String]| -> Vec<_> {
            contents.iter().map(|content| ChatMessage::new("user", content.as_str())).collect()
        };
        let honest: Vec<String> = contents.iter().map(|_| "hello".to_owned()).collect();
        for template in [
            ChatTemplate::by_name("bitnet-2b4t", &tokenizer),
            ChatTemplate::by_name("llama3", &tokenizer),
            ChatTemplate::from_jinja(LLAMA_3_JINJA, &tokenizer),
            ChatTemplate::from_jinja(glued, &tokenizer),
        ] {
            let template = template.expect("a template");
            let control_tokens = |contents: &[String]| -> Vec<_> {
                let chat = template.render(&messages(contents), RenderOptions::default()).expect("a rendered chat");
                let tokens = tokenizer.encode_chat(&chat).expect("an encodable chat");
                tokens.into_iter().filter(|&id| tokenizer.is_special(id)).collect()
            };
            prop_assert_eq!(control_tokens(&contents), control_tokens(&honest));
            // Nothing of what is said is lost or changed.
            let chat = template.render(&messages(&contents), RenderOptions::default()).expect("a rendered chat");
            for content in &contents {
                prop_assert!(chat.text().contains(content.trim()));
            }
        }
    }
}
