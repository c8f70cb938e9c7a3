//! Our entry in a CNI network configuration list: putting it in, taking exactly it out.

use std::path::Path;

use serde_json::{Value, json};
use thiserror::Error;

use super::PLUGIN;

/// Why a configuration is left as it is.
#[derive(Debug, Error)]
pub enum ConflistError {
    /// Not JSON, or not an object.
    #[error("it is no JSON object ({0}); the plugin that owns it has to write it anew")]
    Json(String),
    /// A single plugin's configuration.
    #[error(
        "it has no list `plugins`: a configuration of one plugin cannot be chained; make it a .conflist (cniVersion, name, plugins)"
    )]
    NoList,
}

/// What our entry says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings<'a> {
    /// Socket of the agent.
    pub agent_socket: &'a Path,
    /// File whose presence says that the node has had rules.
    pub state_file: &'a Path,
    /// `open` or `strict`.
    pub start_gate: &'a str,
    /// All the time an ADD may take, milliseconds.
    pub timeout_ms: u32,
}

impl Settings<'_> {
    fn entry(&self) -> Value {
        json!({
            "type": PLUGIN,
            "agentSocket": self.agent_socket,
            "stateFile": self.state_file,
            "startGate": self.start_gate,
            "timeoutMs": self.timeout_ms,
        })
    }
}

fn is_ours(entry: &Value) -> bool {
    entry.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

fn parse(text: &str) -> Result<Value, ConflistError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ConflistError::Json(error.to_string()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(ConflistError::Json("something else".to_owned()))
    }
}

fn print(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The configuration with our entry as its last plugin; `None` when it is so already.
///
/// # Errors
/// When it is no list.
pub fn insert(text: &str, settings: &Settings<'_>) -> Result<Option<String>, ConflistError> {
    let mut value = parse(text)?;
    let plugins = value
        .get_mut("plugins")
        .and_then(Value::as_array_mut)
        .filter(|plugins| !plugins.is_empty())
        .ok_or(ConflistError::NoList)?;
    let entry = settings.entry();
    let ours = plugins.iter().filter(|entry| is_ours(entry)).count();
    if ours == 1 && plugins.last() == Some(&entry) {
        return Ok(None);
    }
    plugins.retain(|entry| !is_ours(entry));
    plugins.push(entry);
    Ok(Some(print(&value)))
}

/// The configuration without our entry; `None` when it has none.
///
/// # Errors
/// When it is no JSON.
pub fn remove(text: &str) -> Result<Option<String>, ConflistError> {
    let mut value = parse(text)?;
    let Some(plugins) = value.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Ok(None);
    };
    let before = plugins.len();
    plugins.retain(|entry| !is_ours(entry));
    Ok((plugins.len() != before).then(|| print(&value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(start_gate: &str) -> Settings<'_> {
        Settings {
            agent_socket: Path::new("/run/a.sock"),
            state_file: Path::new("/var/s"),
            start_gate,
            timeout_ms: 10_000,
        }
    }

    const THEIRS: &str = r#"{"cniVersion": "1.0.0", "name": "net", "x-own": {"b": 1, "a": [null]},
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}"#;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn in_last_once_and_out_again_leaves_what_was() {
        let with = insert(THEIRS, &settings("open")).unwrap().unwrap();
        assert_eq!(value(&with)["plugins"][2]["type"], PLUGIN);
        assert_eq!(insert(&with, &settings("open")).unwrap(), None);
        let strict = insert(&with, &settings("strict")).unwrap().unwrap();
        assert_eq!(value(&strict)["plugins"].as_array().unwrap().len(), 3);
        assert_eq!(value(&strict)["plugins"][2]["startGate"], "strict");
        assert_eq!(value(&remove(&strict).unwrap().unwrap()), value(THEIRS));
        assert_eq!(remove(THEIRS).unwrap(), None);
    }

    #[test]
    fn an_entry_that_is_not_last_any_more_is_moved() {
        let mut list = value(&insert(THEIRS, &settings("open")).unwrap().unwrap());
        list["plugins"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "bandwidth"}));
        let moved = value(&insert(&list.to_string(), &settings("open")).unwrap().unwrap());
        let types: Vec<&str> = moved["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["bridge", "portmap", "bandwidth", PLUGIN]);
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for text in ["", "[]", "{", r#"{"type": "bridge"}"#, r#"{"plugins": []}"#] {
            assert!(insert(text, &settings("open")).is_err(), "{text}");
        }
        assert_eq!(remove(r#"{"type": "bridge"}"#).unwrap(), None);
    }
}
