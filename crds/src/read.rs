//! From a tree of values to a type: the path of what does not fit, and the paths of fields the type does not know.

use std::{collections::BTreeSet, ops::Bound};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Fields of an object that its type does not have, as paths (`spec.ingress[0].fromm`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Unknown(BTreeSet<String>);

impl Unknown {
    /// Paths at `path` or below it.
    pub(crate) fn under<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .range::<str, _>((Bound::Included(path), Bound::Unbounded))
            .take_while(move |unknown| unknown.starts_with(path))
            .filter(move |unknown| unknown[path.len()..].starts_with(['.', '[']))
            .map(String::as_str)
    }

    /// Adds the fields of a part that was read on its own and lies at `path`.
    pub(crate) fn add_part(&mut self, path: &str, part: Self) {
        self.0.extend(part.0.into_iter().map(|field| join(path, &field)));
    }

    /// Paths of fields directly in the object at `path`.
    pub(crate) fn directly_in<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        self.under(path)
            .filter(move |unknown| !unknown[path.len() + 1..].contains(['.', '[']))
    }
}

/// A value that does not fit its type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Misfit {
    /// Path of the field.
    pub(crate) field: String,
    /// What is there and what was expected.
    pub(crate) message: String,
}

/// Reads a type from a tree.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<(T, Unknown), Misfit> {
    let mut unknown = BTreeSet::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        unknown.insert(text(&path));
    };
    let read = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut note));
    match read {
        Ok(read) => Ok((read, Unknown(unknown))),
        Err(error) => Err(Misfit {
            field: field(error.path()),
            message: error.inner().to_string(),
        }),
    }
}

/// Reads a type from a tree, whatever else the tree has. What a fact is made of is a small part of its object.
pub(crate) fn read_part<T: DeserializeOwned>(value: &Value) -> Result<T, Misfit> {
    serde_path_to_error::deserialize(value).map_err(|error| Misfit {
        field: field(error.path()),
        message: error.inner().to_string(),
    })
}

/// The path of `field` of the part that lies at `path`.
pub(crate) fn join(path: &str, field: &str) -> String {
    if field.is_empty() || field.starts_with('[') {
        format!("{path}{field}")
    } else {
        format!("{path}.{field}")
    }
}

fn field(path: &serde_path_to_error::Path) -> String {
    match path.to_string().as_str() {
        "." => String::new(),
        path => path.to_owned(),
    }
}

fn text(path: &serde_ignored::Path<'_>) -> String {
    match path {
        serde_ignored::Path::Root => String::new(),
        serde_ignored::Path::Seq { parent, index } => format!("{}[{index}]", text(parent)),
        serde_ignored::Path::Map { parent, key } => match text(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        serde_ignored::Path::Some { parent }
        | serde_ignored::Path::NewtypeStruct { parent }
        | serde_ignored::Path::NewtypeVariant { parent } => text(parent),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_found_at_any_depth() {
        let value = json!({"metadata": {"name": "a"}, "spec": {"ingres": [], "ingress": [{"fromm": [], "from": [
            {"podSelector": {"matchLabel": {"a": "b"}}}]}]}});
        let (_, unknown) = read::<NetworkPolicy>(&value).unwrap();
        let under = |path| unknown.under(path).collect::<Vec<_>>();
        assert_eq!(
            under("spec.ingress[0].from[0]"),
            ["spec.ingress[0].from[0].podSelector.matchLabel"]
        );
        assert_eq!(under("spec").len(), 3);
        assert_eq!(unknown.directly_in("spec").collect::<Vec<_>>(), ["spec.ingres"]);
        assert_eq!(
            unknown.directly_in("spec.ingress[0]").collect::<Vec<_>>(),
            ["spec.ingress[0].fromm"]
        );
    }

    #[test]
    fn misfits_have_their_path() {
        let value = json!({"spec": {"podSelector": {}, "ingress": [{"from": {"podSelector": {}}}]}});
        let misfit = read::<NetworkPolicy>(&value).unwrap_err();
        assert_eq!(misfit.field, "spec.ingress[0].from");
        assert_eq!(misfit.message, "invalid type: map, expected a sequence");
    }
}
