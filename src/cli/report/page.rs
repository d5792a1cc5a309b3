//! The page: our own style and script around the data.
//!
//! Invariant: nothing in the data can end the element that it stands in, and the page names no other place.

use kiln::Error;
use serde_json::Value;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
const FRAME: &str = include_str!("page.html");

/// The page that shows `data`.
pub fn html(data: &Value) -> Result<String, Error> {
    let text = serde_json::to_string(data).map_err(|e| Error::Internal(format!("a report: {e}")))?;
    // In JSON a `<` stands in strings only.
    let text = text.replace('<', "\\u003c");
    let title = data["name"].as_str().unwrap_or_default();
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    let mut page = String::with_capacity(text.len() + STYLE.len() + SCRIPT.len() + FRAME.len());
    let mut rest = FRAME;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        page.push_str(match name {
            "title" => &title,
            "style" => STYLE,
            "script" => SCRIPT,
            "data" => &text,
            other => return Err(Error::Internal(format!("the page has no part {other:?}"))),
        });
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_from_a_model_stay_data() {
        let page = html(&json!({ "name": "</title><script>alert(1)</script>{{data}}" })).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "the data and our script");
        assert!(page.contains("\\u003cscript>alert") && page.contains("&lt;/title>"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("@import"));
    }
}
