//! Every file under examples/ is read whole, without a diagnostic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use bulkhead_crds::Manifests;
use bulkhead_policy::model::Object;

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|it| it == "yaml" || it == "json") {
            found.push(path);
        }
    }
}

#[test]
fn every_example_is_read_without_a_diagnostic() {
    let mut found = Vec::new();
    files(Path::new("../examples"), &mut found);
    found.sort();
    let mut policies = 0;
    for path in &found {
        let text = fs::read_to_string(path).unwrap();
        let mut manifests = Manifests::default();
        manifests.add(&text, &path.display().to_string());
        let lowered = manifests.finish();
        assert!(
            lowered.diagnostics.is_empty(),
            "{}: {:#?}",
            path.display(),
            lowered.diagnostics
        );
        assert!(!lowered.objects.is_empty(), "{}: nothing in it", path.display());
        policies += usize::from(lowered.objects.iter().any(|it| matches!(it, Object::Policy(_))));
        if text
            .lines()
            .any(|line| line.starts_with("kind: ") && line.ends_with("Policy"))
        {
            for word in ["# What: ", "# Who asks for it: ", "# Not covered: "] {
                assert!(text.contains(word), "{}: its header lacks `{word}`", path.display());
            }
        }
    }
    assert!(policies >= 13, "only {policies} example files have a policy");
}
