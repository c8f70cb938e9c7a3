//! Reasons are on other people's disks: a number that once had a meaning keeps it. The list beside the tool remembers.

use std::path::Path;

use anyhow::Result;

use super::Tree;

const SOURCE: &str = "verdict/src/reason.rs";
const LIST: &str = "xtask/reasons.txt";

pub(super) fn append_only(tree: &Tree) -> Result<Vec<String>> {
    let source = tree.text(Path::new(SOURCE))?;
    let list = tree.text(Path::new(LIST))?;
    let now: Vec<(u8, String)> = source.lines().filter_map(declaration).collect();
    let known: Vec<(u8, String)> = list.lines().filter_map(entry).collect();
    Ok(compare(&now, &known))
}

fn compare(now: &[(u8, String)], known: &[(u8, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, name) in known {
        match now.iter().find(|(other, _)| other == number) {
            None => findings.push(format!(
                "{SOURCE}: reason {number} ({name}) is gone; it must stay, unused if need be"
            )),
            Some((_, other)) if other != name => {
                findings.push(format!(
                    "{SOURCE}: reason {number} was {name} and is now {other}; give the new one a new number"
                ));
            }
            Some(_) => {}
        }
    }
    for (number, name) in now
        .iter()
        .filter(|(number, _)| !known.iter().any(|(other, _)| other == number))
    {
        findings.push(format!(
            "{LIST}: add the line `{number} {name}` (from then on it is for ever)"
        ));
    }
    findings
}

/// `PolicyDenied = 64, "policy-denied";`
fn declaration(line: &str) -> Option<(u8, String)> {
    let (_, rest) = line.trim().split_once(" = ")?;
    let (number, rest) = rest.split_once(", \"")?;
    Some((number.parse().ok()?, rest.strip_suffix("\";")?.to_owned()))
}

/// `64 policy-denied`
fn entry(line: &str) -> Option<(u8, String)> {
    let (number, name) = line.split_once(' ')?;
    Some((number.parse().ok()?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(list: &[(u8, &str)]) -> Vec<(u8, String)> {
        list.iter()
            .map(|(number, name)| (*number, (*name).to_owned()))
            .collect()
    }

    #[test]
    fn renumbering_removing_and_forgetting_are_found() {
        let known = reasons(&[(1, "a"), (2, "b")]);
        assert!(compare(&known, &known).is_empty());
        assert!(compare(&reasons(&[(1, "a"), (2, "c")]), &known)[0].contains("was b"));
        assert!(compare(&reasons(&[(1, "a")]), &known)[0].contains("gone"));
        assert!(compare(&reasons(&[(1, "a"), (2, "b"), (3, "c")]), &known)[0].contains("add the line `3 c`"));
    }

    #[test]
    fn declarations_are_read() {
        assert_eq!(
            declaration("    MidStream = 66, \"mid-stream\";"),
            Some((66, "mid-stream".to_owned()))
        );
        assert_eq!(declaration("pub const FIRST_DROP: u8 = 64;"), None);
    }
}
