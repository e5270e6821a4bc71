//! Chat templates: their selection, their text, and the limits on messages.

use bitnet_tokenizers::{
    ChatMessage, ChatTemplate, EncodeOptions, PromptBos, RenderOptions, TokenId, Tokenizer,
};
use proptest::prelude::*;
use serde_json::json;

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
fn the_built_in_formats_match_the_training_of_the_models() {
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
fn the_built_in_formats_render_as_published_templates_do() {
    for (name, control, source) in [
        ("bitnet-2b4t", LLAMA_3, BITNET_JINJA),
        ("llama3", LLAMA_3, LLAMA_3_JINJA),
        ("chatml", CHAT_ML, CHAT_ML_JINJA),
    ] {
        let tokenizer = tokenizer(control, None);
        let built_in = ChatTemplate::by_name(name, &tokenizer).expect("a known name");
        let published = ChatTemplate::from_jinja(source, &tokenizer).expect("a template");
        for messages in [
            &conversation()[..],
            &conversation()[1..2],
            &conversation()[1..],
        ] {
            assert_eq!(
                text(&built_in, messages),
                text(&published, messages),
                "{name}"
            );
        }
    }
}

#[test]
fn a_files_own_template_is_used_unless_it_is_known_to_be_wrong() {
    for template in [LLAMA_3_JINJA, BITNET_JINJA] {
        for architecture in ["llama", "bitnet", "bitnet-b1.58"] {
            let tokenizer = tokenizer(LLAMA_3, Some(template));
            assert_eq!(
                detected(architecture, &tokenizer),
                Some("jinja"),
                "{architecture}"
            );
        }
    }
    // The official GGUF contains a template of another model.
    assert_eq!(
        detected("bitnet-b1.58", &tokenizer(LLAMA_3, Some(LEFTOVER_JINJA))),
        Some("bitnet-2b4t")
    );
    assert_eq!(
        detected("llama", &tokenizer(LLAMA_3, Some(LEFTOVER_JINJA))),
        Some("jinja")
    );
    let broken = ChatTemplate::detect("llama", &tokenizer(LLAMA_3, Some("{% for %}")));
    let broken = broken.err().expect("an error").to_string();
    assert_eq!(broken, "chat template: expected a name, got '%}' (line 1)");
}

#[test]
fn without_a_template_the_architecture_and_then_the_vocabulary_decide() {
    for (architecture, control, name) in [
        ("bitnet-25", LLAMA_3, Some("bitnet-2b4t")),
        ("llama", LLAMA_3, Some("llama3")),
        ("llama", CHAT_ML, Some("chatml")),
        ("llama", FALCON_3, Some("falcon3")),
        ("bitnet-b1.58", &["<|endoftext|>"], None),
    ] {
        assert_eq!(
            detected(architecture, &tokenizer(control, None)),
            name,
            "{architecture}"
        );
    }
}

#[test]
fn a_wrong_template_is_named_and_has_a_correction() {
    let detect = |architecture: &str, template: Option<&'static str>| {
        let detected = ChatTemplate::detect(architecture, &tokenizer(LLAMA_3, template));
        detected.expect("a template").expect("a template")
    };
    let leftover = detect("bitnet-b1.58", Some(LEFTOVER_JINJA));
    assert_eq!(
        leftover.reason(),
        "architecture bitnet-b1.58 with the vocabulary of Llama 3; the template in the file is \
         another model's and is not used"
    );
    let correction = leftover.correction().expect("the right one");
    assert_eq!(detect("bitnet-25", None).correction(), Some(correction));
    let corrected = ChatTemplate::from_jinja(correction, &tokenizer(LLAMA_3, None));
    let corrected = text(&corrected.expect("a template"), &conversation());
    assert_eq!(corrected, text(&leftover, &conversation()));
    for (architecture, template) in [
        ("bitnet-b1.58", Some(correction)),
        ("bitnet-b1.58", Some(BITNET_JINJA)),
        ("llama", Some(LEFTOVER_JINJA)),
        ("llama", None),
    ] {
        assert_eq!(
            detect(architecture, template).correction(),
            None,
            "{architecture}"
        );
    }
}

#[test]
fn conversations_with_tools_use_the_tool_template_if_there_is_one() {
    let mut spec = small_spec(&["a b"], CHAT_ML);
    spec.chat_template = Some("plain".into());
    spec.named_chat_templates = vec![("tool_use".into(), "{{ tools | length }} tools".into())];
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    let template = ChatTemplate::detect("llama", &tokenizer).expect("a template");
    let template = template.expect("a template");
    assert!(template.reads_tools());
    assert_eq!(text(&template, &conversation()), "plain");
    let tools = json!([{}, {}]);
    assert_eq!(
        rendered(&template, &conversation(), with_tools(&tools)),
        "2 tools"
    );
}

#[test]
fn jinja_templates_run_as_in_transformers() {
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
    let expected = "<|begin_of_text|>{\"name\": \"f<1>\", \"n\": [1, true, null]}\n01 Mar 1970USER: Hi\n\nASSISTANT:Hello!\nUSER:Bye\n";
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
    assert!(
        render(loops).contains("too many steps"),
        "{}",
        render(loops)
    );
    let writes = "{% for a in range(10000) %}{{ 'x' * 10000 }}{% endfor %}";
    assert!(
        render(writes).contains("writes more than"),
        "{}",
        render(writes)
    );
    let recurses = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(
        render(recurses).contains("nests deeper than 400 levels"),
        "{}",
        render(recurses)
    );
    let grows = "{% set ns = namespace(s='x') %}{% for a in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert!(render(grows).contains("a value of"), "{}", render(grows));
    let keeps = "{% set ns = namespace(l=[]) %}{% for a in range(200) %}{% set ns.l = ns.l + ['x' * 1000000] %}{% endfor %}";
    assert!(render(keeps).contains("bytes in all"), "{}", render(keeps));
    let nests = "{% set ns = namespace(l=[]) %}{% for a in range(300) %}{% set ns.l = [ns.l] %}{% endfor %}";
    assert!(
        render(nests).contains("deeper than 256 levels"),
        "{}",
        render(nests)
    );
}

/// A message from JSON.
fn message(fields: serde_json::Value) -> ChatMessage {
    serde_json::from_value(fields).expect("a message")
}

fn jinja(source: &str) -> ChatTemplate {
    ChatTemplate::from_jinja(source, &tokenizer(LLAMA_3, None)).expect("a template")
}

fn rendered(
    template: &ChatTemplate,
    messages: &[ChatMessage],
    options: RenderOptions<'_>,
) -> String {
    template
        .render(messages, options)
        .expect("a rendered chat")
        .text()
        .to_owned()
}

fn with_tools(tools: &serde_json::Value) -> RenderOptions<'_> {
    RenderOptions {
        tools: Some(tools),
        ..RenderOptions::default()
    }
}

/// A question, a call with the given arguments, and its result.
fn calling(arguments: serde_json::Value) -> [ChatMessage; 3] {
    let function = json!({"name": "f", "arguments": arguments});
    let call = json!({"id": "c1", "type": "function", "function": function});
    [
        message(json!({"role": "user", "content": "a"})),
        message(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
        message(json!({"role": "tool", "tool_call_id": "c1", "content": "ok"})),
    ]
}

#[test]
fn messages_reach_templates_as_in_transformers() {
    let source = "{% for m in messages %}[{{ m.role }}|{{ m.tool_calls is defined }}|\
        {{ m.tool_call_id }}|{{ m.content }}|{{ m.keys() | list }}]{% endfor %}";
    assert_eq!(
        text(&jinja(source), &calling(json!("{}"))),
        "[user|False||a|['role', 'content']][assistant|True|||['role', 'tool_calls']]\
         [tool|False|c1|ok|['role', 'tool_call_id', 'content']]"
    );
    let thinking = message(json!({"role": "assistant", "reasoning": "r", "content": "c"}));
    assert_eq!(
        text(&jinja("{{ messages[0] | tojson }}"), &[thinking]),
        "{\"thinking\": \"r\", \"role\": \"assistant\", \"reasoning\": \"r\", \"content\": \"c\", \
         \"reasoning_content\": \"r\"}"
    );
}

#[test]
fn arguments_of_calls_are_objects_unless_the_template_needs_strings() {
    let each = |expression: &str| {
        let calls = "{% for c in m.tool_calls or [] %}";
        jinja(&format!(
            "{{% for m in messages %}}{calls}{{{{ {expression} }}}}{{% endfor %}}{{% endfor %}}"
        ))
    };
    let given = [json!({"b": 1, "a": [2]}), json!("{\"b\": 1, \"a\": [2]}")];
    for arguments in given {
        let messages = calling(arguments);
        for expression in [
            "c.function.arguments | tojson",
            "'' + c.function.arguments",
            "c.function.arguments",
        ] {
            let written = text(&each(expression), &messages);
            assert_eq!(written, "{\"b\": 1, \"a\": [2]}", "{expression}");
        }
    }
    assert_eq!(
        text(&each("c.function.arguments | tojson"), &calling(json!(""))),
        "{}"
    );
}

#[test]
fn content_parts_reach_templates_that_read_them_and_are_joined_for_others() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages = [message(json!({"role": "user", "content": parts}))];
    assert_eq!(text(&jinja("{{ messages[0].content }}"), &messages), "a\nb");
    let reads = "{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}\
        {% for part in c %}{{ part.text }}{% endfor %}{% endif %}";
    assert_eq!(text(&jinja(reads), &messages), "ab");
}

#[test]
fn a_late_system_message_joins_the_first_where_the_template_refuses_it() {
    let refuses = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('late') }}{% endif %}{{ m.role[0] }}:{{ m.content }};{% endfor %}";
    let allows = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}";
    let messages = [
        ("system", "x"),
        ("user", "a"),
        ("system", "y"),
        ("user", "b"),
    ]
    .map(|(role, content)| ChatMessage::new(role, content));
    assert_eq!(text(&jinja(refuses), &messages), "s:x\n\ny;u:a;u:b;");
    assert_eq!(text(&jinja(allows), &messages), "s:x;u:a;s:y;u:b;");
    assert_eq!(text(&jinja(refuses), &messages[1..3]), "s:y;u:a;");
}

#[test]
fn variables_and_documents_reach_templates_and_cannot_replace_the_conversation() {
    let template = jinja("{{ enable_thinking }} {{ documents[0].title }} {{ tools is none }}");
    let variables = json!({"enable_thinking": false});
    let documents = json!([{"title": "T"}]);
    let options = RenderOptions {
        variables: variables.as_object(),
        documents: Some(&documents),
        ..RenderOptions::default()
    };
    assert_eq!(
        rendered(&template, &conversation(), options),
        "False T True"
    );
    let variables = json!({"messages": []});
    let options = RenderOptions {
        variables: variables.as_object(),
        ..RenderOptions::default()
    };
    let error = template
        .render(&conversation(), options)
        .expect_err("a reserved name");
    assert_eq!(
        error.to_string(),
        "template variable \"messages\" cannot be set: it is part of the conversation"
    );
}

#[test]
fn the_last_message_can_be_continued() {
    let options = RenderOptions {
        add_generation_prompt: false,
        continue_final_message: true,
        ..RenderOptions::default()
    };
    let messages = &conversation()[1..3];
    let open = rendered(&jinja(LLAMA_3_JINJA), messages, options);
    assert!(
        open.ends_with("assistant<|end_header_id|>\n\nHello!"),
        "{open}"
    );
    let tokenizer = tokenizer(CHAT_ML, None);
    let built_in = ChatTemplate::by_name("chatml", &tokenizer).expect("a known name");
    assert_eq!(
        rendered(&built_in, messages, options),
        "<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\nHello!"
    );
    let error = jinja("nothing")
        .render(messages, options)
        .expect_err("nothing to continue");
    assert_eq!(
        error.to_string(),
        "the last message has no text that can be continued"
    );
}

#[test]
fn bos_comes_first_exactly_once() {
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
fn prompts_get_bos_at_most_once_and_no_eos() {
    let bos = TokenId(257);
    let mut spec = small_spec(&["a b"], LLAMA_3);
    (spec.bos, spec.add_bos) = (Some(257), Some(true));
    (spec.eos, spec.add_eos) = (Some(258), Some(true));
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    let encode = |text: &str, wanted, parse_special| {
        let tokens = tokenizer.encode_prompt(text, wanted, parse_special);
        tokens.expect("an encodable text")
    };
    let plain = encode("a b", PromptBos::Never, false);
    assert!(!plain.contains(&bos) && !plain.contains(&TokenId(258)));
    let with_bos = [&[bos], &plain[..]].concat();
    assert_eq!(encode("a b", PromptBos::AsModel, false), with_bos);
    assert_eq!(encode("a b", PromptBos::Always, false), with_bos);
    let text = String::from_utf8_lossy(tokenizer.token_bytes(bos)).into_owned() + "a b";
    assert_eq!(encode(&text, PromptBos::AsModel, true), with_bos);
    assert_eq!(encode(&text, PromptBos::Never, true), with_bos);

    spec.add_bos = Some(false);
    let tokenizer = Tokenizer::from_spec(&spec).expect("a tokenizer");
    for (wanted, expected) in [(PromptBos::AsModel, &plain), (PromptBos::Always, &with_bos)] {
        let tokens = tokenizer.encode_prompt("a b", wanted, false);
        assert_eq!(&tokens.expect("an encodable text"), expected, "{wanted:?}");
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
fn a_chat_without_control_tokens_in_its_contents_encodes_like_its_text() {
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
            // Every content is in the text, unchanged.
            let chat = template.render(&messages(&contents), RenderOptions::default()).expect("a rendered chat");
            for content in &contents {
                prop_assert!(chat.text().contains(content.trim()));
            }
        }
    }
}
