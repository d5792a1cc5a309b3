//! Conversations as the text that a model was trained on, by its chat template.
//!
//! Invariant: templates are Jinja as Hugging Face runs it: blocks take their line's end with them, and Python's methods of
//! strings are there; a template can read nothing but the messages.

use super::LmError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// The most steps of a template: one that loops for ever is refused.
const FUEL: u64 = 1_000_000;

/// The text of a conversation, ready for the answer.
///
/// # Errors
/// [`LmError::Template`]: the template is not right, or refuses the messages.
pub fn render(template: &str, messages: &[Message], begin: &str, end: &str) -> Result<String, LmError> {
    let fail = |e: Error| LmError::Template(e.to_string());
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fail)?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_template("chat", template).map_err(fail)?;
    let messages: Vec<_> =
        messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() }).collect();
    let chat = environment.get_template("chat").map_err(fail)?;
    let values = context! { messages, add_generation_prompt => true, bos_token => begin, eos_token => end };
    chat.render(values).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn a_conversation_becomes_the_model_s_text() {
        let text = render(CHATML, &[Message::new("user", " Hi ")], "", "").unwrap();
        let system = "<|im_start|>system\nBe helpful.<|im_end|>\n";
        let rest = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, format!("{system}{rest}"));
        let given = [Message::new("system", "Be brief."), Message::new("user", "Hi")];
        let text = render(CHATML, &given, "", "").unwrap();
        assert_eq!(text, format!("<|im_start|>system\nBe brief.<|im_end|>\n{rest}"));
    }

    #[test]
    fn templates_that_are_not_right_are_refused() {
        let error = |template: &str| render(template, &[], "", "").unwrap_err().to_string();
        assert!(error("{{ raise_exception('no user') }}").contains("no user"));
        assert!(error("{% for %}").contains("chat template"));
        assert!(
            error("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}").contains("fuel")
        );
    }
}
