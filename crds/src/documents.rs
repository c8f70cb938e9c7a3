//! From the text of a file to its objects: documents, lists of objects, and where each was.

use bulkhead_policy::diagnostic::{Diagnostic, Severity};
use serde_json::Value;

use crate::value;

/// Lists inside lists are read to this depth.
const MAX_DEPTH: usize = 4;

/// An object of a file.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Document {
    /// Where it was: `file.yaml document 2`, and `item 7` in a list.
    pub(crate) source: String,
    /// `apiVersion`.
    pub(crate) api_version: String,
    /// `kind`.
    pub(crate) kind: String,
    /// The whole object.
    pub(crate) value: Value,
}

/// Calls `each` with every object of a text, in order, or with what is wrong with the document in its place.
pub(crate) fn read(text: &str, source: &str, mut each: impl FnMut(Result<Document, Diagnostic>)) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, (line, document)) in (1usize..).zip(split(text)) {
        let source = format!("{source} document {number}");
        match value::parse(document) {
            Ok(value) => object(value, source, None, 0, &mut each),
            Err(error) => {
                let at = if error.line == 0 {
                    String::new()
                } else {
                    format!(" at line {}", line + error.line)
                };
                let format = if document.trim_start().starts_with('{') {
                    "JSON"
                } else {
                    "YAML"
                };
                let message = format!(
                    "is not {format}{at}: {}; the document is left out; correct it",
                    error.message
                );
                each(Err(unreadable(source, String::new(), message)));
            }
        }
    }
}

fn unreadable(source: String, field: String, message: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        source,
        object: "document".to_owned(),
        field,
        message,
    }
}

/// Documents with something in them, each with the number of lines before it.
///
/// They are separated before they are parsed, as kubectl does, so that one with a syntax error does not take the following ones with it. A
/// line that begins with `---` cannot be part of a document, not even inside a block of text.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let mut start = 0;
    let (mut start_line, mut offset) = (0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push((start_line, &text[start..offset]));
            // What follows on the separator's line belongs to the document it begins.
            start = offset + 3;
            start_line = number;
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| has_content(document));
    documents
}

fn has_content(document: &str) -> bool {
    document
        .lines()
        .map(str::trim_start)
        .any(|line| !(line.is_empty() || line.starts_with(['#', '%']) || line.trim_end() == "..."))
}

/// What the items of a typed list (`PodList`) leave out.
type Inherited = (String, String);

fn object(
    mut value: Value,
    source: String,
    inherited: Option<&Inherited>,
    depth: usize,
    each: &mut impl FnMut(Result<Document, Diagnostic>),
) {
    if value.is_null() {
        return;
    }
    if !value.is_object() {
        let message = "is not an object; it is left out; write apiVersion, kind and metadata".to_owned();
        return each(Err(unreadable(source, String::new(), message)));
    }
    let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut api_version, mut kind) = (word("apiVersion"), word("kind"));
    if let Some((inherited_version, inherited_kind)) = inherited {
        if kind.is_empty() {
            kind.clone_from(inherited_kind);
        }
        if api_version.is_empty() {
            api_version.clone_from(inherited_version);
        }
    }
    for (field, text) in [("kind", &kind), ("apiVersion", &api_version)] {
        if text.is_empty() {
            let message = "is missing or not text; the document is left out; add it".to_owned();
            return each(Err(unreadable(source, field.to_owned(), message)));
        }
    }
    let item_kind = kind.strip_suffix("List").map(ToOwned::to_owned);
    let (Some(item_kind), Some(items)) = (item_kind, value.get_mut("items")) else {
        return each(Ok(Document {
            source,
            api_version,
            kind,
            value,
        }));
    };
    if depth == MAX_DEPTH {
        let message = format!("is a list inside {MAX_DEPTH} lists; it is left out; flatten it");
        return each(Err(unreadable(source, "items".to_owned(), message)));
    }
    match items.take() {
        Value::Null => {}
        Value::Array(items) => {
            // A plain v1 List says nothing of its items; they say it themselves.
            let inherited = (!item_kind.is_empty()).then_some((api_version, item_kind));
            for (number, item) in (1usize..).zip(items) {
                object(
                    item,
                    format!("{source} item {number}"),
                    inherited.as_ref(),
                    depth + 1,
                    each,
                );
            }
        }
        _ => {
            let message = "is not a list; the document is left out; write each item with a leading '-'".to_owned();
            each(Err(unreadable(source, "items".to_owned(), message)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        read(text, "f", |document| {
            found.push(match document {
                Ok(it) => {
                    let name = it
                        .value
                        .pointer("/metadata/name")
                        .and_then(Value::as_str)
                        .unwrap_or("?");
                    format!("{}: {} {} {name}", it.source, it.api_version, it.kind)
                }
                Err(diagnostic) => diagnostic.to_string(),
            });
        });
        found
    }

    #[test]
    fn documents_are_numbered_without_the_empty_ones() {
        let text = "# a comment\n---\nkind: A\napiVersion: v1\nmetadata: {name: x}\n---\n\n--- # nothing\n---\n\
                    apiVersion: v1\nkind: B\nmetadata: {name: y}\n...\n";
        assert_eq!(read_all(text), ["f document 1: v1 A x", "f document 2: v1 B y"]);
    }

    #[test]
    fn directives_windows_lines_and_a_byte_order_mark_are_fine() {
        let text = "\u{feff}%YAML 1.2\r\n---\r\nkind: A\r\napiVersion: v1\r\nmetadata: {name: x}\r\n---\r\nkind: B\r\napiVersion: v1\r\n";
        assert_eq!(read_all(text), ["f document 1: v1 A x", "f document 2: v1 B ?"]);
    }

    #[test]
    fn a_broken_document_does_not_hide_the_others() {
        let text = "kind: A\napiVersion: v1\n---\nkind: [\n---\nkind: B\napiVersion: v1\n";
        let found = read_all(text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[1].starts_with("error: f document 2: document: is not YAML at line 5: "),
            "{}",
            found[1]
        );
        assert_eq!(found[2], "f document 3: v1 B ?");
    }

    #[test]
    fn lists_give_their_items() {
        let text = r#"{"kind": "List", "apiVersion": "v1", "items": [
            {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}, 7, {"apiVersion": "v1"}]}"#;
        assert_eq!(
            read_all(text),
            [
                "f document 1 item 1: v1 Pod a",
                "error: f document 1 item 2: document: is not an object; it is left out; write apiVersion, kind and metadata",
                "error: f document 1 item 3: document: kind: is missing or not text; the document is left out; add it",
            ]
        );
        let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- metadata: {name: a}\n";
        assert_eq!(
            read_all(text),
            ["f document 1 item 1: networking.k8s.io/v1 NetworkPolicy a"]
        );
        assert_eq!(
            read_all("apiVersion: v1\nkind: PodList\nitems:\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn lists_in_lists_end() {
        let mut text = "{kind: Pod, apiVersion: v1}".to_owned();
        for _ in 0..6 {
            text = format!("{{kind: List, apiVersion: v1, items: [{text}]}}");
        }
        let found = read_all(&text);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("is a list inside 4 lists"), "{}", found[0]);
    }
}
