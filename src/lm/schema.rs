//! JSON schemas as regular expressions.
//!
//! Invariant: every text that the expression of a schema matches is a JSON value that the schema allows; a keyword that cannot be put so
//! is refused by
//! name. Not every allowed value is matched: objects have the schema's properties, sorted by
//! their names, and little space.

use super::LmError;
use serde_json::Value;

/// Between the parts of arrays and objects.
const SPACE: &str = "[ ]?";
/// A character of a string (RFC 8259, section 7).
const CHARACTER: &str = r#"(?:[^"\\\x00-\x1f\x7f]|\\["\\/bfnrt])"#;
const INTEGER: &str = "-?(?:0|[1-9][0-9]{0,17})";
const NUMBER: &str = r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?";
/// Schemas within schemas.
const DEPTH: usize = 32;
/// Bytes of an expression.
const LONGEST: usize = 1 << 20;

/// What says nothing about the values.
const NOTES: [&str; 11] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
];

/// The expression of a schema (JSON Schema 2020-12), for a text that is nothing but the value.
///
/// # Errors
/// [`LmError::Constraint`]: the schema is not right, or has what cannot be put as an expression.
pub fn pattern(schema: &Value) -> Result<String, LmError> {
    Schemas { root: schema }.value(schema, 0)
}

fn fail(message: String) -> LmError {
    LmError::Constraint(message)
}

struct Schemas<'a> {
    root: &'a Value,
}

/// Something like `a`, `b` for a list.
fn either(all: Vec<String>) -> String {
    format!("(?:{})", all.join("|"))
}

/// A text as an expression that matches it alone.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

impl Schemas<'_> {
    fn value(&self, schema: &Value, depth: usize) -> Result<String, LmError> {
        // What a schema refers to twice is put twice, so that the size may double with each step.
        let made = self.expression(schema, depth)?;
        if made.len() > LONGEST { Err(fail("the schema is too large".into())) } else { Ok(made) }
    }

    fn expression(&self, schema: &Value, depth: usize) -> Result<String, LmError> {
        if depth > DEPTH {
            return Err(fail(format!("schemas lie more than {DEPTH} deep in one another: one may refer to itself")));
        }
        let map = match schema {
            Value::Bool(true) => return Err(fail("a schema that allows every value has no expression".into())),
            Value::Object(map) => map,
            other => return Err(fail(format!("{other} is no schema"))),
        };
        let known = |allowed: &[&str]| match map
            .keys()
            .find(|k| !NOTES.contains(&k.as_str()) && !allowed.contains(&k.as_str()))
        {
            Some(key) => Err(fail(format!("`{key}` is not supported here"))),
            None => Ok(()),
        };
        if let Some(reference) = map.get("$ref") {
            known(&["$ref"])?;
            return self.value(self.referred(reference)?, depth + 1);
        }
        if let Some(value) = map.get("const") {
            known(&["const", "type"])?;
            return Ok(literal(&value.to_string()));
        }
        if let Some(values) = map.get("enum") {
            known(&["enum", "type"])?;
            let values = values
                .as_array()
                .filter(|v| !v.is_empty())
                .ok_or_else(|| fail("`enum` is no list of values".into()))?;
            return Ok(either(values.iter().map(|v| literal(&v.to_string())).collect()));
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(schemas) = map.get(key) {
                // Of values that two of `oneOf` allow, none is right: only schemas of different types cannot.
                known(&[key])?;
                let schemas = schemas
                    .as_array()
                    .filter(|v| !v.is_empty())
                    .ok_or_else(|| fail(format!("`{key}` is no list of schemas")))?;
                let kinds: Vec<&Value> = schemas.iter().filter_map(|s| s.get("type").or(s.get("const"))).collect();
                let differ =
                    kinds.len() == schemas.len() && kinds.iter().enumerate().all(|(n, k)| !kinds[..n].contains(k));
                let numbers = kinds.iter().filter(|k| ["integer", "number"].map(Value::from).contains(k)).count();
                if key == "oneOf" && (!differ || numbers > 1) {
                    return Err(fail(
                        "`oneOf` is supported for schemas of different types; `anyOf` may be meant".into(),
                    ));
                }
                return Ok(either(schemas.iter().map(|s| self.value(s, depth + 1)).collect::<Result<_, _>>()?));
            }
        }
        match map.get("type") {
            Some(Value::String(name)) => self.typed(map, name, &known, depth),
            Some(Value::Array(names)) if !names.is_empty() => {
                let each = |name: &Value| match name {
                    Value::String(name) => self.typed(map, name, &|_| Ok(()), depth),
                    other => Err(fail(format!("{other} is no type"))),
                };
                if let Some(key) = map.keys().find(|k| *k != "type" && !NOTES.contains(&k.as_str())) {
                    return Err(fail(format!("`{key}` is not supported where there are several types")));
                }
                Ok(either(names.iter().map(each).collect::<Result<_, _>>()?))
            }
            Some(other) => Err(fail(format!("{other} is no type"))),
            None if map.contains_key("properties") => self.typed(map, "object", &known, depth),
            None => Err(fail(
                "a schema without `type`, `enum`, `const`, `anyOf`, `oneOf` or `$ref` allows every value".into(),
            )),
        }
    }

    fn typed(
        &self,
        map: &serde_json::Map<String, Value>,
        name: &str,
        known: &dyn Fn(&[&str]) -> Result<(), LmError>,
        depth: usize,
    ) -> Result<String, LmError> {
        match name {
            "null" => known(&["type"]).map(|()| "null".into()),
            "boolean" => known(&["type"]).map(|()| "(?:true|false)".into()),
            "integer" => known(&["type"]).map(|()| INTEGER.into()),
            "number" => known(&["type"]).map(|()| NUMBER.into()),
            "string" => {
                known(&["type", "minLength", "maxLength", "pattern", "format"])?;
                self.string(map)
            }
            "array" => {
                known(&["type", "items", "minItems", "maxItems"])?;
                let items =
                    map.get("items").ok_or_else(|| fail("an array without `items` may hold every value".into()))?;
                let item = self.value(items, depth + 1)?;
                let (least, most) = bounds(map, "minItems", "maxItems")?;
                let more = |least: usize, most: Option<usize>| {
                    format!("(?:,{SPACE}{item}){{{least},{}}}", most.map(|n| n.to_string()).unwrap_or_default())
                };
                let full = format!("{item}{}", more(least.saturating_sub(1), most.map(|n| n.saturating_sub(1))));
                Ok(match (least, most) {
                    (_, Some(0)) => r"\[\]".into(),
                    (0, _) => format!(r"\[(?:{full})?\]"),
                    _ => format!(r"\[{full}\]"),
                })
            }
            "object" => {
                known(&["type", "properties", "required", "additionalProperties"])?;
                self.object(map, depth)
            }
            other => Err(fail(format!("there is no type `{other}`"))),
        }
    }

    fn string(&self, map: &serde_json::Map<String, Value>) -> Result<String, LmError> {
        let plain = match map.get("format").map(|f| f.as_str().unwrap_or_default()) {
            None => None,
            Some("date") => Some(r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"),
            Some("time") => Some(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"),
            Some("uuid") => Some("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
            Some(other) => return Err(fail(format!("the format `{other}` is not supported"))),
        };
        let limits = map.contains_key("minLength") || map.contains_key("maxLength");
        let pattern = map.get("pattern").map(|p| p.as_str().unwrap_or_default());
        let inner = match (plain, pattern, limits) {
            (Some(plain), None, false) => plain.to_string(),
            (None, Some(pattern), false) => {
                // Only a pattern of the whole string, of characters that need no escape in JSON, means the same in both.
                let whole = pattern.strip_prefix('^').and_then(|p| p.strip_suffix('$'));
                let whole =
                    whole.ok_or_else(|| fail(format!("the pattern {pattern:?} must begin with ^ and end with $")))?;
                if whole.ends_with('\\') || whole.contains(['"', '.', '^', '$']) || contains_escape(whole) {
                    let message = "has what cannot be put into a JSON string as it stands (quotes, `.`, `^`, or escapes of classes)";
                    return Err(fail(format!("the pattern {pattern:?} {message}")));
                }
                format!("(?:{whole})")
            }
            (None, None, _) => {
                let (least, most) = bounds(map, "minLength", "maxLength")?;
                match (least, most) {
                    (0, None) => format!("{CHARACTER}*"),
                    (least, most) => {
                        format!("{CHARACTER}{{{least},{}}}", most.map(|n| n.to_string()).unwrap_or_default())
                    }
                }
            }
            _ => return Err(fail("a string has one of `pattern`, `format`, and limits of its length".into())),
        };
        Ok(format!("\"{inner}\""))
    }

    fn object(&self, map: &serde_json::Map<String, Value>, depth: usize) -> Result<String, LmError> {
        if !matches!(map.get("additionalProperties"), None | Some(Value::Bool(_))) {
            return Err(fail("`additionalProperties` with a schema is not supported".into()));
        }
        let empty = serde_json::Map::new();
        let properties = match map.get("properties") {
            Some(value) => value.as_object().ok_or_else(|| fail("`properties` is no object".into()))?,
            None => &empty,
        };
        let required: Vec<&str> = match map.get("required") {
            None => Vec::new(),
            Some(value) => {
                let names = value.as_array().and_then(|a| a.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
                names.ok_or_else(|| fail("`required` is no list of names".into()))?
            }
        };
        if let Some(name) = required.iter().find(|name| !properties.contains_key(**name)) {
            return Err(fail(format!("the required property `{name}` has no schema")));
        }
        let mut parts = Vec::with_capacity(properties.len());
        for (name, schema) in properties {
            let value = self.value(schema, depth + 1)?;
            let part = format!("{}:{SPACE}{value}", literal(&Value::from(name.as_str()).to_string()));
            parts.push((part, required.contains(&name.as_str())));
        }
        // One way for each property that may come first; those behind it follow a comma.
        let mut ways = Vec::new();
        for (n, (first, needed)) in parts.iter().enumerate() {
            let rest = parts.iter().skip(n + 1).map(|(part, needed)| match needed {
                true => format!(",{SPACE}{part}"),
                false => format!("(?:,{SPACE}{part})?"),
            });
            ways.push(format!("{first}{}", rest.collect::<String>()));
            if *needed {
                break;
            }
        }
        let may_be_empty = parts.iter().all(|(_, needed)| !needed);
        let inside = if ways.is_empty() { String::new() } else { either(ways) };
        Ok(if may_be_empty && !inside.is_empty() {
            format!(r"\{{(?:{inside})?\}}")
        } else {
            format!(r"\{{{inside}\}}")
        })
    }

    fn referred(&self, reference: &Value) -> Result<&Value, LmError> {
        let path = reference.as_str().and_then(|r| r.strip_prefix('#'));
        let found = path.and_then(|p| self.root.pointer(p));
        found.ok_or_else(|| fail(format!("`$ref` {reference} leads nowhere in this schema")))
    }
}

/// Whether there is an escape that matches more than one character, such as `\w`.
fn contains_escape(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next().is_none_or(|next| !next.is_ascii_punctuation() || next == '\\') {
            return true;
        }
    }
    false
}

/// Two limits of a number of things.
fn bounds(map: &serde_json::Map<String, Value>, least: &str, most: &str) -> Result<(usize, Option<usize>), LmError> {
    let number = |key: &str| match map.get(key) {
        None => Ok(None),
        Some(value) => {
            let found = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= 10_000);
            found.map(Some).ok_or_else(|| fail(format!("`{key}` is {value}, not a number up to 10000")))
        }
    };
    let (low, high) = (number(least)?.unwrap_or(0), number(most)?);
    if high.is_some_and(|high| high < low) {
        return Err(fail(format!("`{least}` is greater than `{most}`")));
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(schema: &Value, text: &str) -> bool {
        let pattern = format!("^(?:{})$", pattern(schema).unwrap());
        regex_automata::meta::Regex::new(&pattern).unwrap().is_match(text)
    }

    #[test]
    fn values_of_each_type_are_matched() {
        let person = json!({
            "type": "object", "required": ["name", "age"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 8}, "nick": {"type": "string"}, "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"enum": ["a", "b.c"]}, "maxItems": 2}, "more": {"$ref": "#/$defs/more"},
            },
            "$defs": {"more": {"anyOf": [{"type": "null"}, {"type": "number"}, {"const": {"x": [1, true]}}]}},
        });
        // The properties come in the order that serde_json keeps: by name.
        for good in [
            r#"{"age": 3, "name": "Ann"}"#,
            r#"{"age":-30,"more":null,"name":"\"\\ é"}"#,
            r#"{"age": 0, "more": -1.5e-3, "name": "x", "nick": "", "tags": ["a", "b.c"]}"#,
            r#"{"age": 0, "more": {"x":[1,true]}, "name": "x", "tags": []}"#,
        ] {
            assert!(serde_json::from_str::<Value>(good).is_ok());
            assert!(matches(&person, good), "{good} by {}", pattern(&person).unwrap());
        }
        for bad in [
            "{}",
            r#"{"age": 3}"#,
            r#"{"age": 03, "name": "x"}"#,
            r#"{"age": 3, "name": ""}"#,
            r#"{"age": 3, "name": "123456789"}"#,
            r#"{"age": 3, "name": "a"b"}"#,
            r#"{"age": 3, "name": "a", "tags": ["a", "a", "a"]}"#,
            r#"{"age": 3, "name": "a", "tags": ["bxc"]}"#,
            r#"{"age": 3, "name": "a", "other": 1}"#,
            r#" {"age": 3, "name": "a"}"#,
        ] {
            assert!(!matches(&person, bad), "{bad}");
        }
        let optional = json!({"properties": {"a": {"type": "boolean"}, "b": {"type": ["null", "integer"]}}});
        assert!(
            ["{}", r#"{"a": true}"#, r#"{"b": 1}"#, r#"{"a":false,"b":null}"#].iter().all(|t| matches(&optional, t))
        );
        assert!(!matches(&optional, r#"{"a": true,}"#) && !matches(&optional, r#"{, "b": 1}"#));
        let strings =
            json!({"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[A-Z]{2}\\-[0-9]+$"}});
        assert!(
            matches(&strings, r#"["AB-1", "XY-22"]"#) && !matches(&strings, "[]") && !matches(&strings, r#"["ab-1"]"#)
        );
        assert!(matches(&json!({"type": "string", "format": "date"}), "\"2024-02-28\""));
        assert!(matches(&json!({"type": "object"}), "{}"));
    }

    #[test]
    fn what_cannot_be_an_expression_is_refused_by_name() {
        let error = |schema: Value| pattern(&schema).unwrap_err().to_string();
        assert!(error(json!({"type": "integer", "minimum": 3})).contains("`minimum` is not supported"));
        assert!(error(json!({"type": "string", "pattern": "a"})).contains("must begin with ^"));
        assert!(error(json!({"type": "string", "pattern": "^\\w$"})).contains("cannot be put"));
        assert!(error(json!({"type": "string", "format": "email"})).contains("`email`"));
        assert!(error(json!({"type": "array"})).contains("without `items`"));
        assert!(error(json!({"type": "thing"})).contains("no type `thing`"));
        assert!(error(json!({})).contains("allows every value"));
        assert!(error(json!(true)).contains("allows every value"));
        assert!(error(json!({"enum": []})).contains("no list of values"));
        assert!(error(json!({"$ref": "#/no"})).contains("leads nowhere"));
        assert!(
            error(json!({"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}))
                .contains("itself")
        );
        assert!(error(json!({"type": "object", "required": ["a"]})).contains("`a` has no schema"));
        assert!(
            error(json!({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}))
                .contains("greater than")
        );
        assert!(error(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})).contains("`anyOf` may be meant"));
        assert!(error(json!({"allOf": [{"type": "integer"}]})).contains("allows every value"));
        assert!(error(json!({"type": ["string", "null"], "maxLength": 3})).contains("several types"));
        let mut defs = serde_json::Map::from_iter([("d0".to_string(), json!({"type": "integer"}))]);
        for n in 0..14 {
            let reference = json!({"$ref": format!("#/$defs/d{n}")});
            defs.insert(format!("d{}", n + 1), json!({"properties": {"a": reference, "b": reference}}));
        }
        let nested = json!({"$defs": defs, "$ref": "#/$defs/d14"});
        assert!(error(nested).contains("too large"));
    }
}
