//! Label selectors: the standard's, lowered, with what the API server would refuse taken out and reported.

use std::collections::BTreeSet;

use bulkhead_policy::model::{LabelSelector, Operator, Requirement};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector as KubernetesSelector, LabelSelectorRequirement as KubernetesRequirement,
};

use crate::{read::Unknown, report::Report};

/// A lowered selector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lowered {
    /// The requirements that could be read.
    pub(crate) selector: LabelSelector,
    /// False when one could not: then the selector selects at least what the user meant, and maybe more. Each caller decides which
    /// side of that is the closed one.
    pub(crate) exact: bool,
}

/// Lowers a selector found at `path`.
pub(crate) fn lower(selector: &KubernetesSelector, path: &str, unknown: &Unknown, report: &mut Report<'_>) -> Lowered {
    let mut requirements = BTreeSet::new();
    let mut exact = true;
    for field in unknown.under(path) {
        report.error(
            field,
            "is no field of a label selector, so it is not known what it should select; check its spelling",
        );
        exact = false;
    }
    for (key, value) in selector.match_labels.iter().flatten() {
        let field = format!("{path}.matchLabels[{key}]");
        match check_key(key).and_then(|()| check_value(value)) {
            Ok(()) => {
                requirements.insert(Requirement {
                    key: key.clone(),
                    operator: Operator::In(BTreeSet::from([value.clone()])),
                });
            }
            Err(problem) => {
                report.error(field, problem);
                exact = false;
            }
        }
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        match lower_expression(expression) {
            Ok(requirement) => {
                requirements.insert(requirement);
            }
            Err((field, problem)) => {
                report.error(format!("{path}.matchExpressions[{index}].{field}"), problem);
                exact = false;
            }
        }
    }
    Lowered {
        selector: LabelSelector(requirements),
        exact,
    }
}

fn lower_expression(expression: &KubernetesRequirement) -> Result<Requirement, (&'static str, String)> {
    check_key(&expression.key).map_err(|problem| ("key", problem))?;
    let values = expression.values.as_deref().unwrap_or_default();
    values
        .iter()
        .try_for_each(|value| check_value(value))
        .map_err(|problem| ("values", problem))?;
    let set: BTreeSet<String> = values.iter().cloned().collect();
    let name = expression.operator.as_str();
    let operator = match (name, set.is_empty()) {
        ("In", false) => Operator::In(set),
        ("NotIn", false) => Operator::NotIn(set),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            return Err((
                "values",
                format!("is empty, which {name} does not allow; list at least one value"),
            ));
        }
        ("Exists" | "DoesNotExist", false) => {
            return Err((
                "values",
                format!("is not empty, which {name} does not allow; remove the values"),
            ));
        }
        _ => {
            return Err((
                "operator",
                format!("is {name:?}; write In, NotIn, Exists or DoesNotExist"),
            ));
        }
    };
    Ok(Requirement {
        key: expression.key.clone(),
        operator,
    })
}

/// A label key: an optional DNS prefix and `/`, then a name of at most 63 characters.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let good_prefix = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix
                .split('.')
                .all(|part| is_word(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit(), "-"))
    });
    let good_name = name.len() <= 63 && is_word(name, |c| c.is_ascii_alphanumeric(), "-_.");
    if good_prefix && good_name {
        Ok(())
    } else {
        Err(format!(
            "{key:?} is not a label key; write [prefix/]name with letters, digits, '-', '_' and '.'"
        ))
    }
}

/// A label value: empty, or at most 63 characters that begin and end with a letter or digit.
fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || (value.len() <= 63 && is_word(value, |c| c.is_ascii_alphanumeric(), "-_.")) {
        Ok(())
    } else {
        Err(format!(
            "{value:?} is not a label value; write at most 63 letters, digits, '-', '_' and '.', first and last a letter or digit"
        ))
    }
}

/// Not empty, begins and ends with an `end` character, `inner` ones allowed in between.
fn is_word(text: &str, end: impl Fn(char) -> bool, inner: &str) -> bool {
    text.starts_with(&end) && text.ends_with(&end) && text.chars().all(|c| end(c) || inner.contains(c))
}

#[cfg(test)]
mod tests {
    use bulkhead_policy::diagnostic::Diagnostic;

    use super::*;

    fn lower_yaml(yaml: &str) -> (Lowered, Vec<Diagnostic>) {
        let value = crate::value::parse(yaml).unwrap();
        let (selector, _) = crate::read::read::<KubernetesSelector>(&value).unwrap();
        let mut diagnostics = Vec::new();
        let lowered = lower(
            &selector,
            "s",
            &Unknown::default(),
            &mut Report::new("f", "o".to_owned(), &mut diagnostics),
        );
        (lowered, diagnostics)
    }

    fn message(yaml: &str) -> String {
        let (lowered, diagnostics) = lower_yaml(yaml);
        assert!(!lowered.exact);
        assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
        diagnostics[0].to_string()
    }

    #[test]
    fn operators() {
        let (lowered, diagnostics) = lower_yaml(
            "matchLabels: {app: web, empty: ''}\nmatchExpressions:\n- {key: a, operator: In, values: [x, y]}\n\
             - {key: b, operator: NotIn, values: [x]}\n- {key: c.io/d, operator: Exists}\n- {key: e, operator: DoesNotExist}\n",
        );
        assert!(lowered.exact && diagnostics.is_empty(), "{diagnostics:?}");
        assert_eq!(lowered.selector.0.len(), 6);
    }

    #[test]
    fn what_the_api_server_refuses_is_named() {
        for (yaml, expected) in [
            (
                "matchExpressions: [{key: a, operator: in, values: [x]}]",
                "error: f: o: s.matchExpressions[0].operator: is \"in\"; write In",
            ),
            (
                "matchExpressions: [{key: a, operator: In}]",
                "s.matchExpressions[0].values: is empty, which In does not allow",
            ),
            (
                "matchExpressions: [{key: a, operator: NotIn, values: []}]",
                "is empty, which NotIn does not allow",
            ),
            (
                "matchExpressions: [{key: a, operator: Exists, values: [x]}]",
                "remove the values",
            ),
            (
                "matchExpressions: [{operator: Exists}]",
                "s.matchExpressions[0].key: \"\" is not a label key",
            ),
            (
                "matchLabels: {'a b': x}",
                "s.matchLabels[a b]: \"a b\" is not a label key",
            ),
            (
                "matchLabels: {a: '-x'}",
                "s.matchLabels[a]: \"-x\" is not a label value",
            ),
        ] {
            let message = message(yaml);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn the_rest_of_a_bad_selector_stays() {
        let (lowered, _) =
            lower_yaml("matchLabels: {app: web}\nmatchExpressions: [{key: a, operator: Like, values: [x]}]");
        assert_eq!(lowered.selector.0.len(), 1);
    }
}
