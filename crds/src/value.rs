//! From text to a tree of values: YAML or JSON, duplicate keys refused, merge keys resolved.
//!
//! Both formats become `serde_json::Value`, because that is what the API server would see: keys are strings (`1:` and `on:`
//! become `"1"` and `"on"`), there are no tags and no other types than JSON's.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SyntaxError {
    /// Line within the text, from 1; 0 when not known.
    pub(crate) line: usize,
    /// What the parser says.
    pub(crate) message: String,
}

/// Reads one JSON or YAML document. JSON is tried first where the text looks like it, because it is many times faster.
pub(crate) fn parse(text: &str) -> Result<Value, SyntaxError> {
    if text.trim_start().starts_with(['{', '[']) {
        let mut json = serde_json::Deserializer::from_str(text);
        match Tree.deserialize(&mut json).and_then(|value| json.end().map(|()| value)) {
            Ok(value) => return Ok(value),
            // A document of kubectl's JSON output: the JSON parser's message is the better one.
            Err(error) if text.trim_start().starts_with("{\"") || text.trim_start().starts_with("{\n") => {
                return Err(SyntaxError {
                    line: error.line(),
                    message: without_position(&error.to_string()),
                });
            }
            Err(_) => {}
        }
    }
    let value = Tree
        .deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|error| SyntaxError {
            line: error.location().map_or(0, |location| location.line()),
            message: without_position(&error.to_string()),
        })?;
    Ok(value)
}

/// The parser's own position counts from the start of the document, ours from the start of the file: leave one of them.
fn without_position(message: &str) -> String {
    message
        .find(" at line ")
        .map_or(message, |at| &message[..at])
        .to_owned()
}

/// Builds a tree of values.
struct Tree;

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list, text, a number, true, false or null")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a number JSON has")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Tree)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let mut merges = Vec::new();
        while let Some(key) = entries.next_key_seed(Tree)? {
            let key = key_text::<A::Error>(key)?;
            let value = entries.next_value_seed(Tree)?;
            if key == "<<" {
                merges.push(value);
            } else if map.contains_key(&key) {
                return Err(A::Error::custom(format!(
                    "the key {key:?} is there twice; keep one of them"
                )));
            } else {
                map.insert(key, value);
            }
        }
        merges
            .into_iter()
            .try_for_each(|merge| merge_into::<A::Error>(&mut map, merge))?;
        Ok(Value::Object(map))
    }
}

fn key_text<E: Error>(key: Value) -> Result<String, E> {
    match key {
        Value::String(text) => Ok(text),
        Value::Bool(_) | Value::Number(_) => Ok(key.to_string()),
        other => Err(E::custom(format!("a key must be text, not {other}"))),
    }
}

/// YAML's merge key: what the mapping does not say itself comes from the merged ones, the first of them first.
fn merge_into<E: Error>(map: &mut Map<String, Value>, merge: Value) -> Result<(), E> {
    match merge {
        Value::Object(other) => {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(list) => list.into_iter().try_for_each(|item| match item {
            Value::Object(_) => merge_into(map, item),
            other => Err(E::custom(format!("`<<` merges mappings, not {other}"))),
        }),
        other => Err(E::custom(format!("`<<` merges mappings, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_and_json_give_the_same_tree() {
        let tree = json!({"a": [1, "x", true, null], "1": {"on": 2.5}});
        assert_eq!(parse("a: [1, x, true, null]\n1: {on: 2.5}\n"), Ok(tree.clone()));
        assert_eq!(parse(&tree.to_string()), Ok(tree));
    }

    #[test]
    fn duplicate_keys_are_refused_in_both() {
        for text in ["a: 1\nb: 2\na: 3\n", "{\"a\": 1, \"b\": 2,\n \"a\": 3}"] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains("\"a\" is there twice"), "{error:?}");
        }
    }

    #[test]
    fn merge_keys_do_not_override() {
        let text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\n";
        assert_eq!(
            parse(text),
            Ok(json!({"base": {"x": 1, "y": 2}, "other": {"x": 1, "y": 3}}))
        );
    }

    #[test]
    fn flow_style_yaml_is_not_mistaken_for_json() {
        assert_eq!(parse("{a: 1}"), Ok(json!({"a": 1})));
    }

    #[test]
    fn errors_have_their_line() {
        assert_eq!(parse("a: 1\nb: [\n").unwrap_err().line, 3);
        assert_eq!(parse("{\"a\": 1,\n\"b\": }").unwrap_err().line, 2);
    }

    #[test]
    fn bombs_end_in_an_error() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let before = level - 1;
            let items = vec![format!("*a{before}"); 9].join(",");
            text.push_str(&["a", &level.to_string(), ": &a", &level.to_string(), " [", &items, "]\n"].concat());
        }
        assert!(parse(&text).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("{{\"a\":{}", "[".repeat(100_000))).is_err());
    }
}
